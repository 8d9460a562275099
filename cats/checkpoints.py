"""Reading and writing checkpoints: ours, and the ones that the authors' training writes.

Ours is one file, ``{"format": 1, "config": {...}, "state_dict": {...}, "metrics": {...}, "training": {...}}``, or a
``.safetensors`` with the same in its header. The authors' is a folder with ``model_best.pth`` and ``args.pkl``, or the
``.pth`` alone with the hyperpixels given; state dicts that other tools wrapped (``torch.compile``, ``DataParallel``,
Lightning, an average of the weights) are read as well. All are data: nothing pickled is executed, and tensors are
compared with the model before either takes memory (:mod:`cats.tensor_files`).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cats.architectures import build_model
from cats.backbones import parse_hyperpixels
from cats.core.errors import CheckpointError, InputError
from cats.core.files import atomic_path
from cats.core.pickle_values import Arguments, PickleError, StoredTensor, describe, plain
from cats.model import CATs, CATsConfig
from cats.tensor_files import TensorFile, open_tensor_file, read_arguments, tensor_bytes, write_safetensors

FORMAT = 1

_NOTHING_FREE = 1 << 16
# Where training tools put the weights, the first that is there; averaged ones (EMA) before the last ones, as timm does.
_STATE_KEYS = (
    "state_dict_ema", "ema_state_dict", "model_ema", "ema", "state_dict", "model_state_dict", "model", "module"
)  # fmt: skip
_ARGUMENT_KEYS = ("args", "hyper_parameters", "hparams", "opt", "config", "cfg")
_WRAPPERS = frozenset({"_orig_mod", "module", "model", "ema_model"})  # that tools put before names of tensors
_OWN_PARTS = (
    "feature_extraction.",
    "proj.",
    "decoder.",
    "x_normal",
    "y_normal",
    "encoder_layers.",
    "decoder_layers.",
    "head.",
)


@dataclass
class Checkpoint:
    """A loaded checkpoint: the model in evaluation mode, float32, and what the file says about it.

    Attributes:
        origin: ``"cats-toolkit"`` or ``"authors"``.
        metrics, training: as stored (empty for the authors' files).
        ignored: known tensors in the file that the model does not use, by name.
        weights: under which key of the file the weights were, such as ``state_dict_ema``; empty for a bare state dict.
    """

    model: CATs
    origin: str
    metrics: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    weights: str = "state_dict"


def save_checkpoint(
    path: str | Path,
    model: CATs,
    *,
    metrics: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    half: bool = False,
) -> None:
    """Write a checkpoint atomically; with ``half``, floating-point tensors are stored as float16.

    ``metrics`` and ``training`` hold plain JSON types. A name in ``.safetensors`` writes that format, any other one
    that of ``torch.save``. Raises :class:`InputError` if the file cannot be written.
    """
    state = {key: _stored(value, half) for key, value in model.state_dict().items()}
    document = {
        "format": FORMAT,
        "config": model.config.to_dict(),
        "metrics": json.loads(json.dumps(metrics or {})),
        "training": json.loads(json.dumps(training or {})),
    }
    if Path(path).suffix.lower() == ".safetensors":
        write_safetensors(path, state, document)
    else:
        save_document(path, {**document, "state_dict": state})


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
        hyperpixels: ids for an authors' file that says them neither itself nor in an ``args.pkl`` beside it.

    Raises:
        CheckpointError: unreadable, unknown format, missing, unexpected or misshapen tensors, or values that are not
            finite numbers (named).
        InputError: hyperpixels for a file that holds its own.
    """
    file, beside = _locate(Path(path))
    opened = open_tensor_file(file)
    document = opened.content
    if not isinstance(document, dict):
        raise CheckpointError(f"{file} holds a {describe(document)}, not a checkpoint")
    if "format" in document:
        if hyperpixels is not None:
            raise InputError(f"{file} holds its own hyperpixels; leave out --hyperpixels")
        return _load_ours(opened, document)
    where, state = _find_state(file, document)
    arguments = read_arguments(beside) if beside else _find_arguments(document)
    state = _unwrapped(file, state)
    model, ignored = _load(opened, _authors_config(file, state, arguments, hyperpixels), state)
    return Checkpoint(model, "authors", ignored=ignored, weights=where)


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
            raise CheckpointError(f"checkpoint {path} " + ("is not a file" if path.exists() else "does not exist"))
    arguments = file.with_name("args.pkl")
    return file, arguments if arguments.is_file() else None


def _load_ours(opened: TensorFile, document: dict[str, Any]) -> Checkpoint:
    file, version = opened.path, document["format"]
    if type(version) is not int or version != FORMAT:
        raise CheckpointError(
            f"{file} has checkpoint format {describe(version)}; this toolkit reads {FORMAT}: upgrade it"
        )
    missing = {"config", "state_dict"} - set(document)
    if missing:
        raise CheckpointError(f"{file} lacks {sorted(missing)}")
    if type(document["config"]) is not dict or type(document["state_dict"]) is not dict:
        raise CheckpointError(f"{file}: config and state_dict must be dictionaries")
    try:
        config = CATsConfig.from_dict(document["config"])
        notes = [plain(document.get(part, {})) for part in ("metrics", "training")]
    except (InputError, PickleError) as error:
        raise CheckpointError(f"{file}: {error}") from error
    if not all(isinstance(note, dict) for note in notes):
        raise CheckpointError(f"{file}: metrics and training must be dictionaries")
    model, ignored = _load(opened, config, _unwrapped(file, document["state_dict"]))
    metrics, training = notes
    return Checkpoint(model, "cats-toolkit", metrics, training, ignored)


def _find_state(file: Path, document: dict[Any, Any]) -> tuple[str, dict[Any, Any]]:
    """The state dict of somebody else's checkpoint, and the keys that lead to it."""
    path: list[str] = []
    while True:
        found = next((key for key in _STATE_KEYS if type(document.get(key)) is dict and document[key]), None)
        if found is None or len(path) == 3:
            break
        path.append(found)
        document = document[found]
    if path or any(isinstance(value, StoredTensor) for value in document.values()):
        return ".".join(path), document
    keys = sorted(str(key)[:40] for key in document)[:8]
    if any(key in document for key in _STATE_KEYS):
        raise CheckpointError(f"{file} holds no tensors by name; its keys are {keys}")
    raise CheckpointError(
        f"{file} is neither a checkpoint of this toolkit (key 'format') nor of the authors (key 'state_dict'), nor a "
        f"state dict; its keys are {keys}"
    )


def _find_arguments(document: dict[Any, Any]) -> dict[str, Any]:
    """The options of the training within a checkpoint, where one of them names the hyperpixels."""
    for key in _ARGUMENT_KEYS:
        value = document.get(key)
        if isinstance(value, (dict, Arguments)) and "hyperpixel" in value:
            return value
    return {}


def _unwrapped(file: Path, state: dict[Any, Any]) -> dict[str, StoredTensor]:
    """Tensors by the model's own names: without what tools put before them, in any order and number."""
    result: dict[str, StoredTensor] = {}
    others = []
    for key, value in state.items():
        name = ".".join(part for part in str(key).split(".") if part not in _WRAPPERS) if len(str(key)) < 1000 else ""
        if not isinstance(value, StoredTensor):
            others.append(f"{str(key)[:80]} ({describe(value)})")
        elif name in result:
            raise CheckpointError(f"{file} holds {name} twice, as {str(key)[:200]} too: leave one set of weights in it")
        elif name != "n_averaged":  # by torch's AveragedModel
            result[name] = value
    wrong = [text for text in others if text.startswith(_OWN_PARTS)] or ([] if result else others)
    if wrong:
        raise CheckpointError(f"{file}: not tensors with a name: {', '.join(wrong[:4])}")
    return result


def _authors_config(
    file: Path, state: dict[str, StoredTensor], arguments: dict[str, Any], hyperpixels: tuple[int, ...] | None
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
    shapes = {}
    for name, axes in (("proj.0.weight", 2), ("decoder.pos_embed_x", 5), ("decoder.blocks.0.mlp.fc1.weight", 2)):
        if name not in state:
            raise CheckpointError(f"{file} lacks the tensor '{name}': not a CATs checkpoint")
        shapes[name] = state[name].shape
        if len(shapes[name]) != axes or 0 in shapes[name]:
            raise CheckpointError(f"{file}: {name} has the shape {list(shapes[name])}: not a CATs checkpoint")
    (projection_dim, _), position, (hidden, dim) = shapes.values()
    if position[1] != len(hyperpixels):
        ids = list(hyperpixels)[:12]
        raise CheckpointError(
            f"{file} was trained with {position[1]} hyperpixels, {len(hyperpixels)} given: {tuple(ids)}"
        )
    if not any(key.startswith("feature_extraction.backbone.layer1.") for key in state):
        raise CheckpointError(
            f"{file} has a backbone other than a ResNet and does not say which: export the best.pt of this toolkit"
        )
    deep = any(".layer3.22." in key for key in state)
    try:
        return CATsConfig(
            backbone="resnet101" if deep else "resnet50",
            hyperpixels=hyperpixels,
            feature_size=position[3],
            image_size=16 * position[3],
            projection_dim=projection_dim,
            depth=_depth(state),
            num_heads=arguments.get("num_heads", 6),
            mlp_ratio=hidden / dim,
        )
    except InputError as error:
        raise CheckpointError(f"{file}: {error}") from error


def _depth(state: dict[str, StoredTensor]) -> int:
    blocks = {key.split(".")[2] for key in state if key.startswith("decoder.blocks.")}
    return len(blocks or {key.split(".")[1] for key in state if key.startswith("encoder_layers.")})


def _listed_ids(value: Any, file: Path) -> tuple[int, ...]:
    try:
        if isinstance(value, str) and len(value) < 4096:
            return parse_hyperpixels(value)
        if isinstance(value, (list, tuple)) and all(type(part) is int for part in value):
            return tuple(value)
    except InputError:
        pass
    raise CheckpointError(f"the arguments of {file}: hyperpixel {describe(value)} is not a list of numbers")


def _load(opened: TensorFile, config: CATsConfig, state: dict[str, StoredTensor]) -> tuple[CATs, list[str]]:
    """A model in evaluation mode with the tensors of a file, and the names of known ones that it does not use.

    Compares the names and shapes with a model without memory first, and the configuration with the tensors before
    that: a file of a few bytes could ask for a model of any size.
    """
    file = opened.path
    _check_structure(file, config, state)
    try:
        with torch.device("meta"):
            outline = build_model(config)
    except InputError as error:
        raise CheckpointError(f"{file}: {error}") from error
    unused = {f"feature_extraction.backbone.{key}" for key in outline.feature_extraction.unused_keys}
    own = outline.state_dict()
    _check_fit(file, config, own, state, unused)
    used = {key: state[key] for key in own if key in state}
    if sum(map(tensor_bytes, used.values())) > opened.memory_limit():
        raise CheckpointError(f"the tensors of {file} would take much more memory than its size")
    values = {key: opened.load(stored).to(own[key].dtype) for key, stored in used.items()}
    wrong = [key for key, value in values.items() if value.is_floating_point() and not value.isfinite().all()]
    if wrong:
        raise CheckpointError(
            f"{file}: {len(wrong)} of {len(values)} tensors hold values that are not finite numbers (NaN or infinity): "
            f"{_listed(wrong)}. The training diverged: take an earlier checkpoint"
        )
    model = build_model(config)
    model.load_state_dict(values, strict=False)
    return model.eval(), sorted(set(state) & unused)


def _check_structure(file: Path, config: CATsConfig, state: dict[str, StoredTensor]) -> None:
    """Raise :class:`CheckpointError` where the configuration asks for another aggregator than the tensors are."""
    half, hidden = config.embed_dim // 2, (int(config.embed_dim * config.mlp_ratio), config.embed_dim)
    expected = {
        "decoder.pos_embed_x": (1, len(config.hyperpixels), 1, config.feature_size, half),
        "decoder.blocks.0.mlp.fc1.weight": hidden,
        "encoder_layers.0.fc1.weight": hidden,
    }
    for name, shape in expected.items():
        if name in state and state[name].shape != shape:
            raise CheckpointError(
                f"{file} does not fit its configuration: misshapen: {name} {state[name].shape} instead of {shape}"
            )
    if config.depth != _depth(state):
        raise CheckpointError(
            f"{file} does not fit its configuration: depth {config.depth}, but tensors of {_depth(state)} blocks"
        )


def _check_fit(
    file: Path, config: CATsConfig, own: dict[str, Tensor], state: dict[str, StoredTensor], unused: set[str]
) -> None:
    """Raise :class:`CheckpointError` that names every kind of difference between a model and the tensors of a file."""
    optional = {key for key in own if key.endswith("num_batches_tracked")}
    problems = {
        "missing": sorted(set(own) - set(state) - optional),
        "unexpected": sorted(set(state) - set(own) - unused),
        "misshapen": [
            f"{key} {state[key].shape} instead of {tuple(own[key].shape)}"
            for key in own
            if key in state and state[key].shape != tuple(own[key].shape)
        ],
    }
    text = "; ".join(f"{len(names)} {what}: {_listed(names)}" for what, names in problems.items() if names)
    if text:
        raise CheckpointError(f"{file} does not fit a CATs on {config.backbone}: {text}")


def _listed(names: list[str]) -> str:
    return ", ".join(name[:160] for name in names[:4]) + (", ..." if len(names) > 4 else "")
