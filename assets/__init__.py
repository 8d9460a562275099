"""Files that ship with the toolkit: the model ``cats-tiny`` and the demo photos.

They are found alike from an installed wheel and from a clone::

    from cats.assets import asset
    from cats.runtime import Matcher

    match = Matcher(asset("cats-tiny.onnx")).match(asset("astronaut.jpg"), asset("grace_hopper.jpg"))
"""

from __future__ import annotations

from pathlib import Path

from cats.core.errors import InputError
from cats.core.hub import CHECKPOINTS, MODELS, fetch, parse_hub_name

_FOLDER = Path(__file__).resolve().parent


def asset(name: str) -> Path:
    """Path of a shipped file.

    Raises:
        InputError: no such file; the message lists what there is.
    """
    path = _FOLDER / name
    if not path.is_file() or path.suffix == ".py":
        known = sorted(item.name for item in _FOLDER.iterdir() if item.is_file() and item.suffix != ".py")
        raise InputError(f"no shipped file {name!r}; there are {', '.join(known)}")
    return path


def find_model(model: str | Path, suffix: str = ".onnx") -> Path:
    """The file that a name stands for: every command and :class:`cats.runtime.Matcher` look it up here.

    Args:
        model: a file; the name of a shipped model, ``cats-tiny`` or ``cats-tiny.int8``, also with the suffix, where no
            such file is here; or ``hf://user/repo[@revision][/file]``, see :mod:`cats.core.hub`.
        suffix: of the shipped file: ``.onnx``, or ``.pt`` where a checkpoint is wanted.

    Raises:
        InputError, ModelFileError: as :func:`cats.core.hub.fetch`.
    """
    on_hub = parse_hub_name(model)
    if on_hub is not None:
        return fetch(on_hub, MODELS if suffix == ".onnx" else CHECKPOINTS)
    path = Path(model)
    shipped = _FOLDER / f"{path.name.removesuffix(suffix)}{suffix}"
    return shipped if path == Path(path.name) and not path.exists() and shipped.is_file() else path
