"""Files that ship with the toolkit: the model ``cats-tiny`` and the demo photos.

They are found alike from an installed wheel and from a clone::

    from cats.assets import asset
    from cats.runtime import Matcher

    match = Matcher(asset("cats-tiny.onnx")).match(asset("astronaut.jpg"), asset("grace_hopper.jpg"))
"""

from __future__ import annotations

from pathlib import Path

from cats.core.errors import InputError

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
    """A model file as it was given, or the shipped one of that name: ``cats-tiny``, where no such file is here.

    Args:
        suffix: of the shipped file: ``.onnx``, or ``.pt`` where a checkpoint is wanted.
    """
    path = Path(model)
    shipped = _FOLDER / f"{path.name}{suffix}"
    return shipped if path == Path(path.name) and not path.exists() and shipped.is_file() else path
