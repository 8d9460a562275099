"""Training configurations as data: the paper's settings, the one that made ``cats-tiny``, and a short one for warps.

``cats-train --config NAME --print-config`` prints one; ``--set key=value`` overrides any field, dotted for the nested
ones (``--set model.depth=2 --set warp.rotation=40``).
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any

from cats.core.errors import InputError
from cats.core.json_text import parse_json
from cats.data.warps import WarpConfig
from cats.model import CATsConfig
from cats.training.starts import STARTS

_NOT_NEGATIVE = (
    "lr_backbone", "weight_decay", "warmup", "clip", "direct", "direct_share", "direct_epe", "composed", "unmatched",
    "even", "cycle", "patience", "validation_pairs", "seed",
)  # fmt: skip


@dataclass(frozen=True)
class TrainConfig:
    """Everything a training run depends on besides its data.

    Attributes:
        model: structure; ``backbone_weights`` as in :class:`cats.model.CATs`.
        start: of the aggregator: ``random`` (the paper's), ``zero`` (``zero_start`` of :class:`cats.model.CATs`),
            ``consensus`` (:func:`cats.training.starts.start_as_consensus`), or ``checkpoint``: all weights are those
            of ``--init``, and ``model`` is that checkpoint's.
        init: name and digest of that checkpoint, so that a run is resumed with the same one.
        freeze: ``all`` (no gradients, statistics fixed), ``authors`` (no gradients, batch-norm statistics as in
            the authors' frozen backbone), ``none``.
        lr, lr_backbone, weight_decay: of AdamW; vectors (biases, norms) are not decayed.
        batch_size: pairs or triplets of one step on one GPU; ``accumulate`` steps make one update.
        epochs: passes over a data set with an end; ``steps``: updates for endless data (warps, categories).
        schedule: ``multistep`` (``milestones`` as shares of the run, factor 0.5) or ``cosine``; ``warmup`` updates.
        clip: largest gradient norm, 0 for none.
        ema: decay of the averaged weights that are validated and saved, 0 for none.
        amp: ``off``, ``bf16`` or ``fp16`` autocast; correlation, softmax and losses stay float32. On a CPU that has no
            bfloat16 ``bf16`` is float32.
        augment, crop: the paper's Table 1, and the box-preserving random crop, each for supervised data.
        direct, composed, unmatched: weights of the terms of probabilistic warp consistency (categories); ``keep``:
            share of cells of the composed term; ``direct_share``: share of a batch that computes the direct terms too;
            ``direct_epe``: weight of the direct flow's end-point error in cells, which places matches between cells;
            ``sigma``: of the targets in cells; ``even``: weight of the divergence of matches with a photo of another
            category from the even distribution, on ``even_share`` of a batch: where there is no partner, the confidence
            shall be low.
        cycle: weight of COTR's cycle error beside the end-point error (keypoints, warps).
        interpolate: the saved weights lie this share of the way from the start's to the trained ones (Wortsman et al.,
            "Robust fine-tuning of zero-shot models", CVPR 2022): training goes further than objects it has not seen
            want. 1 saves the trained ones.
        warp: distribution of random warps (warps, categories).
        validate_every: updates between validations; ``patience``: validations without a gain before stopping, 0 for
            never; ``validation_pairs``: annotated pairs that a validation looks at, spread over the data set, 0 for
            all.
    """

    model: CATsConfig = field(default_factory=CATsConfig)
    backbone_weights: str = "auto"
    start: str = "random"
    init: str = ""
    freeze: str = "none"
    lr: float = 3e-5
    lr_backbone: float = 3e-6
    weight_decay: float = 0.05
    batch_size: int = 32
    accumulate: int = 1
    epochs: int = 100
    steps: int = 10_000
    schedule: str = "multistep"
    milestones: tuple[float, ...] = (0.7, 0.8, 0.9)
    warmup: int = 0
    clip: float = 0.0
    ema: float = 0.0
    amp: str = "off"
    augment: bool = True
    crop: bool = True
    direct: float = 0.25
    direct_share: float = 0.25
    direct_epe: float = 0.0
    composed: float = 1.0
    unmatched: float = 0.0
    even: float = 0.0
    even_share: float = 0.25
    keep: float = 0.6
    sigma: float = 0.7
    cycle: float = 0.0
    interpolate: float = 1.0
    warp: WarpConfig = field(default_factory=WarpConfig)
    validate_every: int = 500
    validation_pairs: int = 400
    patience: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        choices = {
            "start": STARTS,
            "freeze": ("all", "authors", "none"),
            "schedule": ("multistep", "cosine"),
            "amp": ("off", "bf16", "fp16"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise InputError(f"config: {name} is {getattr(self, name)!r}, expected one of {', '.join(known)}")
        for name in ("lr", "batch_size", "accumulate", "epochs", "steps", "validate_every", "sigma"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"config: {name} is {getattr(self, name)}, it must be positive and finite")
        for name in _NOT_NEGATIVE:
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"config: {name} is {getattr(self, name)}, it must be finite and not negative")
        if not all(isinstance(value, (int, float)) and 0 < value < 1 for value in self.milestones):
            raise InputError(f"config: milestones {self.milestones!r} are not shares of the run, such as 0.7, 0.8")
        if not 0 <= self.ema < 1 or not 0 < self.keep <= 1 or not 0 < self.even_share <= 1:
            raise InputError("config: ema must lie in [0, 1), keep and even_share in (0, 1]")
        if not 0 < self.interpolate <= 1 or (self.interpolate < 1 and self.start == "random"):
            raise InputError(
                f"config: interpolate is {self.interpolate}, it must lie in (0, 1], and below 1 it needs start=zero or "
                "start=consensus: random weights match nothing"
            )
        if self.model.architecture == "cotr" and self.start in ("zero", "consensus"):
            raise InputError(f"config: start is {self.start}, but architecture cotr has no correlation: start=random")
        if self.cycle and self.model.architecture != "cotr":
            raise InputError("config: cycle is a term of architecture cotr")
        if (self.start == "checkpoint") != bool(self.init):
            raise InputError("config: start=checkpoint and --init CHECKPOINT belong together")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return json.loads(json.dumps({**dataclasses.asdict(self), "model": self.model.to_dict()}))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """Inverse of :meth:`to_dict`; raises :class:`InputError` naming unknown keys."""
        unknown = set(values) - {item.name for item in dataclasses.fields(cls)}
        if unknown:
            raise InputError(f"training config has unknown keys {sorted(unknown)}")
        nested = {"model": CATsConfig.from_dict(values["model"]), "warp": WarpConfig(**values["warp"])}
        return cls(**{**values, **nested, "milestones": tuple(values["milestones"])})

    def override(self, assignments: list[str]) -> TrainConfig:
        """Apply ``key=value`` texts; values are JSON where they parse as such, else strings.

        Raises:
            InputError: no ``=``, unknown key (the known ones are listed), or a value of the wrong kind.
        """
        values = self.to_dict()
        for assignment in assignments:
            key, separator, text = assignment.partition("=")
            if not separator:
                raise InputError(f"--set {assignment}: expected key=value")
            _assign(values, key.strip().split("."), _parse(text.strip()), assignment)
        return TrainConfig.from_dict(values)  # checked once all are in: some only fit together


def differences(saved: dict[str, Any], given: dict[str, Any], prefix: str = "") -> list[str]:
    """What differs between two :meth:`TrainConfig.to_dict`, one text for each setting."""
    found = []
    for key in sorted({*saved, *given}):
        old, new = saved.get(key), given.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key} was {old!r}, not {new!r}")
    return found


def _parse(text: str) -> Any:
    try:
        return parse_json(text, "the value")
    except InputError:
        return text


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", list: "a list"}


def _assign(values: dict[str, Any], path: list[str], value: Any, assignment: str) -> None:
    """Set one value in place, at the same JSON type as the one it replaces."""
    if path[0] not in values:
        raise InputError(f"--set {assignment}: unknown key {path[0]!r}; known: {', '.join(sorted(values))}")
    current = values[path[0]]
    if len(path) > 1:
        if not isinstance(current, dict):
            raise InputError(f"--set {assignment}: {path[0]} has no part {path[1]!r}")
        _assign(current, path[1:], value, assignment)
        return
    if isinstance(current, dict):
        raise InputError(
            f"--set {assignment}: {path[0]} has parts, set them one by one: {path[0]}.{next(iter(current))}=..."
        )
    if isinstance(current, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(current):
        raise InputError(f"--set {assignment}: {path[0]} takes {_KINDS[type(current)]}, like {current!r}")
    values[path[0]] = value


_PFPASCAL = (2, 17, 21, 22, 25, 26, 28)
_TINY = CATsConfig(
    backbone="tf_efficientnet_lite0",
    hyperpixels=(11, 12, 15),
    projection_dim=64,
    depth=2,
    num_heads=4,
    mlp_ratio=1.0,
    temperature=0.15,  # of the start, whose correlation is a sum over neighbours
)

_COTR = CATsConfig(hyperpixels=(26,), projection_dim=256, num_heads=8, architecture="cotr")

_SHORT_RUN = TrainConfig(
    model=_TINY,
    start="consensus",
    freeze="all",
    lr=1e-3,
    batch_size=4,
    schedule="cosine",
    warmup=10,
    clip=1.0,
    ema=0.99,
    amp="bf16",
    direct=0.15,
    direct_share=1.0,
    direct_epe=2.0,
    interpolate=0.7,
    validate_every=50,
)

# The second edition of cats-tiny: more triplets an update, parts of photos, strangers.
_TINY_RUN = dataclasses.replace(
    _SHORT_RUN, batch_size=24, steps=474, warmup=60, ema=0.998, even=0.05, warp=WarpConfig(zoom=0.7, aspect=1.2),
    validate_every=158,
)  # fmt: skip

CONFIGS: dict[str, TrainConfig] = {
    "spair": TrainConfig(),
    "spair-frozen": TrainConfig(freeze="authors"),
    "spair-single-level": TrainConfig(model=CATsConfig(hyperpixels=(26,)), freeze="authors"),
    "spair-cotr": TrainConfig(model=_COTR),
    "spair-deit": TrainConfig(model=CATsConfig(backbone="deit_base_patch16_224", hyperpixels=(4, 6, 8, 9, 10, 11))),
    "spair-dino": TrainConfig(model=CATsConfig(backbone="vit_base_patch16_224.dino", hyperpixels=(4, 6, 8, 9, 10, 11))),
    "spair-dinov2": TrainConfig(
        model=CATsConfig("vit_base_patch14_dinov2.lvd142m", (4, 6, 8, 9, 10, 11), image_size=224)
    ),
    "spair-dinov3": TrainConfig(model=CATsConfig("vit_base_patch16_dinov3.lvd1689m", (4, 6, 8, 9, 10, 11))),
    "pfpascal": TrainConfig(model=CATsConfig(hyperpixels=_PFPASCAL)),
    "pfpascal-frozen": TrainConfig(model=CATsConfig(hyperpixels=_PFPASCAL), freeze="authors"),
    "tiny": _TINY_RUN,
    # What --init takes unless another one is named: benchmarks/results/fine-tuning.md. Half of the way keeps what the
    # checkpoint knows of other objects.
    "fine-tune": dataclasses.replace(_SHORT_RUN, lr=2e-4, steps=100, interpolate=0.5),
    # Short, on warps alone: at twice the rate, with half the batch, noise in the gradients uses up most of 200 updates.
    "tiny-warps": dataclasses.replace(_SHORT_RUN, lr=5e-4, batch_size=8, steps=200, interpolate=1.0),
}

CONFIGS["tiny-cotr"] = dataclasses.replace(
    CONFIGS["tiny-warps"],
    model=dataclasses.replace(_COTR, backbone="tf_efficientnet_lite0", hyperpixels=(15,)),
    start="random", lr=3e-4, steps=300, validate_every=100,
)  # fmt: skip


def fine_tuning(config: TrainConfig, model: CATsConfig, init: str) -> TrainConfig:
    """``config`` for a run that starts from a checkpoint with this model; ``init``: see :class:`TrainConfig`."""
    return dataclasses.replace(config, model=model, start="checkpoint", init=init)


def find_config(name: str) -> TrainConfig:
    """A named configuration; raises :class:`InputError` with the known names."""
    if name not in CONFIGS:
        raise InputError(f"unknown configuration {name!r}; known: {', '.join(CONFIGS)}")
    return CONFIGS[name]
