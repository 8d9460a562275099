"""Reading and writing checkpoints: ours, and the ones that the authors' training writes.

Ours is one file, ``{"format": 1, "config": {...}, "state_dict": {...}, "metrics": {...}, "training": {...}}``. The
authors' is a folder with ``model_best.pth`` and ``args.pkl``, or the ``.pth`` alone with the hyperpixels given. Neither
executes pickled code: tensors load with ``weights_only``, arguments through an allow-list.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import pickle
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cats.backbones import parse_hyperpixels
from cats.core.errors import CheckpointError, InputError
from cats.core.files import atomic_path
from cats.model import CATs, CATsConfig

FORMAT = 1

_MAX_ARGS_BYTES = 1 << 20
_NOTHING_FREE = 1 << 16
# numpy 2 made numpy.core private; files may name either.
_NUMPY_SCALAR = (getattr(np, "_core", None) or np.core).multiarray.scalar
# Training state that the authors' files hold beside the weights; plain data, read and ignored.
_HARMLESS = [
    collections.Counter,
    (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    (_NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    np.dtypes.Float64DType,
    np.dtypes.Float32DType,
]


@dataclass
class Checkpoint:
    """A loaded checkpoint: the model in evaluation mode, float32, and what the file says about it.

    Attributes:
        origin: ``"cats-toolkit"`` or ``"authors"``.
        metrics, training: as stored (empty for the authors' files).
        ignored: known tensors in the file that the model does not use, by name.
    """

    model: CATs
    origin: str
    metrics: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)


def save_checkpoint(
    path: str | Path,
    model: CATs,
    *,
    metrics: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    half: bool = False,
) -> None:
    """Write a checkpoint atomically; with ``half``, floating-point tensors are stored as float16.

    ``metrics`` and ``training`` hold plain JSON types. Raises :class:`InputError` if the file cannot be written.
    """
    state = {key: _stored(value, half) for key, value in model.state_dict().items()}
    document = {
        "format": FORMAT,
        "config": model.config.to_dict(),
        "state_dict": state,
        "metrics": json.loads(json.dumps(metrics or {})),
        "training": json.loads(json.dumps(training or {})),
    }
    save_document(path, document)


def save_document(path: str | Path, document: dict[str, Any]) -> None:
    """``torch.save``, atomically.

    Raises:
        InputError: the file cannot be written; of a full disk PyTorch itself says where in its archive it noticed.
    """
    with atomic_path(path) as temporary:
        try:
            torch.save(document, temporary)
        except (OSError, RuntimeError) as error:
            full = shutil.disk_usage(temporary.parent).free < _NOTHING_FREE
            reason = "No space left on device" if full else getattr(error, "strerror", None) or error
            raise InputError(f"cannot write {path}: {reason}; what was there before is intact") from error


def _stored(value: Tensor, half: bool) -> Tensor:
    value = value.detach().cpu()
    return value.half() if half and value.is_floating_point() else value.clone()


def load_checkpoint(path: str | Path, *, hyperpixels: tuple[int, ...] | None = None) -> Checkpoint:
    """Load a checkpoint of ours or the authors'.

    Args:
        path: file, or the authors' folder with ``model_best.pth`` and ``args.pkl``.
        hyperpixels: ids for an authors' file that lies without its ``args.pkl``.

    Raises:
        CheckpointError: unreadable, unknown format, or missing, unexpected or misshapen tensors (named).
    """
    file, arguments = _locate(Path(path))
    document = _read(file)
    if "format" in document:
        if hyperpixels is not None:
            raise InputError(f"{file} holds its own hyperpixels; leave out --hyperpixels")
        return _load_ours(file, document)
    if "state_dict" not in document:
        raise CheckpointError(
            f"{file} is neither a checkpoint of this toolkit (key 'format') nor of the authors (key 'state_dict'); "
            f"its keys are {sorted(map(str, document))[:8]}"
        )
    return _load_authors(file, document["state_dict"], _read_arguments(arguments) if arguments else {}, hyperpixels)


def weights_sha256(model: torch.nn.Module) -> str:
    """Hex SHA-256 over names, shapes and bytes of all tensors in the order of their names; the identity of weights."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        array = value.detach().cpu().contiguous().numpy()
        digest.update(f"{key} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _locate(path: Path) -> tuple[Path, Path | None]:
    """The file with the tensors and, where there is one, ``args.pkl``."""
    if path.is_dir():
        file = path / "model_best.pth"
        if not file.is_file():
            raise CheckpointError(f"{path} is a folder without model_best.pth; give the checkpoint file itself")
    else:
        file = path
        if not file.is_file():
            raise CheckpointError(f"checkpoint {path} does not exist")
    arguments = file.with_name("args.pkl")
    return file, arguments if arguments.is_file() else None


def _read(file: Path) -> dict[str, Any]:
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            document = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))  # the rest of PyTorch's text says how to run the code anyway
        if found is None:
            raise CheckpointError(f"{file} is not a checkpoint that can be read") from error
        raise CheckpointError(
            f"{file} holds objects other than tensors and plain data, which are not loaded because loading them runs "
            f"code: it refers to {found[1]}"
        ) from error
    except Exception as error:  # torch.load also raises zip, EOF, OS, key and runtime errors
        # A key error is a byte that the unpickler does not know; it says nothing to a person.
        text = "" if isinstance(error, KeyError) else str(error).partition("\n")[0][:200]
        raise CheckpointError(f"cannot read checkpoint {file}: {text or 'it is not a file of PyTorch'}") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{file} holds a {type(document).__name__}, not a checkpoint")
    return document


def _load_ours(file: Path, document: dict[str, Any]) -> Checkpoint:
    version = document["format"]
    if version != FORMAT:
        raise CheckpointError(f"{file} has checkpoint format {version!r}; this toolkit reads {FORMAT}: upgrade it")
    missing = {"config", "state_dict"} - set(document)
    if missing:
        raise CheckpointError(f"{file} lacks {sorted(missing)}")
    try:
        config = CATsConfig.from_dict(document["config"])
    except InputError as error:
        raise CheckpointError(f"{file}: {error}") from error
    model = CATs(config)
    ignored = _fill(model, document["state_dict"], file)
    return Checkpoint(model.eval(), "cats-toolkit", document.get("metrics", {}), document.get("training", {}), ignored)


def _load_authors(
    file: Path, state: dict[str, Tensor], arguments: dict[str, Any], hyperpixels: tuple[int, ...] | None
) -> Checkpoint:
    state = {key.removeprefix("module."): value for key, value in state.items()}
    config = _authors_config(file, state, arguments, hyperpixels)
    model = CATs(config)
    ignored = _fill(model, state, file)
    return Checkpoint(model.eval(), "authors", ignored=ignored)


def _authors_config(
    file: Path, state: dict[str, Tensor], arguments: dict[str, Any], hyperpixels: tuple[int, ...] | None
) -> CATsConfig:
    """Structure from the shapes of the tensors; ``args.pkl`` or the caller adds what shapes cannot tell."""
    if hyperpixels is None:
        text = arguments.get("hyperpixel")
        if text is None:
            raise CheckpointError(
                f"{file} does not say its hyperpixels: put args.pkl beside it, or give --hyperpixels "
                "(published: 0,8,20,21,26,28,29,30 for SPair-71k, 2,17,21,22,25,26,28 for PF-PASCAL)"
            )
        hyperpixels = _listed_ids(text, file)
    try:
        projection_dim = state["proj.0.weight"].shape[0]
        position = state["decoder.pos_embed_x"].shape
        hidden, dim = state["decoder.blocks.0.mlp.fc1.weight"].shape
    except KeyError as error:
        raise CheckpointError(f"{file} lacks the tensor {error}: not a CATs checkpoint") from error
    levels = position[1]
    if levels != len(hyperpixels):
        raise CheckpointError(f"{file} was trained with {levels} hyperpixels, {len(hyperpixels)} given: {hyperpixels}")
    blocks = {key.split(".")[2] for key in state if key.startswith("decoder.blocks.")}
    deep = any(".layer3.22." in key for key in state)
    return CATsConfig(
        backbone="resnet101" if deep else "resnet50",
        hyperpixels=hyperpixels,
        feature_size=position[3],
        image_size=16 * position[3],
        projection_dim=projection_dim,
        depth=len(blocks),
        num_heads=int(arguments.get("num_heads", 6)),
        mlp_ratio=hidden / dim,
    )


def _listed_ids(value: Any, file: Path) -> tuple[int, ...]:
    try:
        return parse_hyperpixels(value if isinstance(value, str) else ",".join(map(str, value)))
    except (InputError, TypeError) as error:
        raise CheckpointError(f"args.pkl beside {file}: hyperpixel {value!r} is not a list of numbers") from error


def _fill(model: CATs, state: dict[str, Tensor], file: Path) -> list[str]:
    """Copy a state dict into the model; returns names of known, unused tensors; names everything that does not fit."""
    own = model.state_dict()
    unused = {f"feature_extraction.backbone.{key}" for key in model.feature_extraction.unused_keys}
    optional = {key for key in own if key.endswith("num_batches_tracked")}
    problems = [
        ("missing", sorted(set(own) - set(state) - optional)),
        ("unexpected", sorted(set(state) - set(own) - unused)),
        (
            "misshapen",
            [
                f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
                for key in own
                if key in state and state[key].shape != own[key].shape
            ],
        ),
    ]
    text = "; ".join(
        f"{len(names)} {what}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
        for what, names in problems
        if names
    )
    if text:
        raise CheckpointError(f"{file} does not fit a CATs on {model.config.backbone}: {text}")
    model.load_state_dict({key: state[key].to(own[key].dtype) for key in own if key in state}, strict=False)
    return sorted(set(state) & unused)


class _ArgumentsUnpickler(pickle.Unpickler):
    """Unpickles an argparse.Namespace of plain values and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuse every global but the namespace."""
        if (module, name) == ("argparse", "Namespace"):
            return argparse.Namespace
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")


def _read_arguments(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _MAX_ARGS_BYTES:
        raise CheckpointError(f"{path} is too large for pickled arguments; give --hyperpixels and move it away")
    try:
        with open(path, "rb") as handle:
            value = _ArgumentsUnpickler(handle).load()
    except Exception as error:  # malformed pickles raise almost anything
        raise CheckpointError(
            f"{path} is not a plain pickled argparse.Namespace ({error}); it was not executed"
        ) from error
    return vars(value) if isinstance(value, argparse.Namespace) else {}
