"""From a float32 export to a quantized file: ranges, Q/DQ, comparison, metadata."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import numpy_helper

from cats.calibration.balance import Factors, choose_factors
from cats.calibration.graph import is_half, name_nodes, quantizable_modules, separate_weights
from cats.calibration.quantize import quantize
from cats.calibration.ranges import Ranges, collect_ranges
from cats.calibration.sessions import ProbeSession, SessionMatcher, fixed_batch
from cats.core.console import progress
from cats.core.errors import InputError, ModelFileError
from cats.core.metadata import Metadata, read_onnx_metadata, write_model
from cats.data.photo_pairs import PhotoPairs, demo_photos
from cats.evaluation.parity import TOLERANCE, Parity, measure_parity, pck_drift
from cats.export.fp16.assign import is_quantized, to_fp16
from cats.export.fp16.input_moments import measure_moments
from cats.export.modules import is_inside
from cats.runtime.backends import CHECKPOINT_SUFFIXES, ENGINE_SUFFIXES

_DOMAINS = {"", "ai.onnx", "cats"}  # of the operators that an exported graph has
_INTERFACE = (("image_a", "image_b"), ("flow", "confidence"))

HELD_OUT = 16
BALANCE_PAIRS = 8


@dataclass(frozen=True)
class FloatModel:
    """A float32 export and what it says about itself."""

    path: Path
    model: onnx.ModelProto
    metadata: Metadata


@dataclass(frozen=True)
class CalibrationReport:
    """What was written.

    Attributes:
        path: the quantized file.
        metadata: as embedded in it.
        drift: its flow against the float model's.
        quantized, kept: modules.
    """

    path: Path
    metadata: Metadata
    drift: Parity
    quantized: tuple[str, ...]
    kept: tuple[str, ...]


def load_pair(path: str | Path, advice: str) -> tuple[onnx.ModelProto, Metadata]:
    """Read a file of kind ``pair``.

    Raises:
        ModelFileError: not an ONNX file with CATs metadata, or of another kind, with ``advice`` what to give instead.
    """
    if Path(path).suffix.lower() in CHECKPOINT_SUFFIXES:
        raise ModelFileError(f"{path} is a checkpoint: export it first, cats-export --ckpt {path}")
    if Path(path).suffix.lower() in ENGINE_SUFFIXES:
        raise ModelFileError(f"{path} is an engine: give the .onnx file that it was built from")
    metadata = read_onnx_metadata(path)
    if metadata.kind != "pair":
        raise ModelFileError(f"{path} is of kind {metadata.kind}: {advice}")
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except (OSError, DecodeError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelFileError(f"cannot read {path}: {' '.join(str(error).split())[:200]}") from error
    foreign = sorted({node.domain for node in model.graph.node} - _DOMAINS)
    if foreign:
        raise ModelFileError(
            f"{path} has operators of {', '.join(foreign)}, as files have that a library saved after optimising them "
            "for itself: give the file of cats-export"
        )
    interface = [[value.name for value in side] for side in (model.graph.input, model.graph.output)]
    if not all(set(needed) <= set(given) for needed, given in zip(_INTERFACE, interface, strict=True)):
        raise ModelFileError(f"{path} lacks an input image_a, image_b or an output flow, confidence: export it again")
    for item in model.graph.initializer:
        values = numpy_helper.to_array(item)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ModelFileError(f"{path}: {item.name} has values that are not finite: the weights are broken")
    return name_nodes(model), metadata


def load_float_model(path: str | Path) -> FloatModel:
    """Read a file that can be calibrated.

    Raises:
        ModelFileError: not an ONNX file with CATs metadata, of another kind than ``pair``, quantized already, typed in
            half precision, or exported for CPUs.
    """
    model, metadata = load_pair(path, "calibrate the file of cats-export without --split")
    if is_quantized(model) or metadata.precision in ("int8", "fp8", "mixed"):
        raise ModelFileError(f"{path} is quantized already ({metadata.precision}): give the float32 export")
    if is_half(model) or metadata.precision not in ("fp32", "unknown"):
        raise ModelFileError(f"{path} is typed in {metadata.precision}: give the float32 export (without --fp16)")
    if metadata.target == "cpu":
        raise ModelFileError(f"{path} was made for float32 on CPUs: give the export without --for cpu")
    if not quantizable_modules(model):
        raise ModelFileError(f"{path}: no weight has the name of its layer, another tool renamed them: export it again")
    return FloatModel(Path(path), separate_weights(model), metadata)


def measure_ranges(
    source: FloatModel, pairs: PhotoPairs, *, balance: bool | Factors = True, threads: int | None = None
) -> Ranges:
    """Ranges of the activations over all pairs, with a progress bar.

    Args:
        source: of :func:`load_float_model`.
        pairs: to measure on.
        balance: balance the norms of the aggregator (:mod:`cats.calibration.balance`), with factors found on a few of
            the pairs or with given ones.
        threads: CPU threads; None takes all.

    Raises:
        InputError: an image cannot be read.
        ModelFileError: an activation is not finite.
    """

    def collect(chosen: PhotoPairs, factors: Factors, what: str) -> Ranges:
        with progress() as bar:
            task = bar.add_task(f"{what}, pairs", total=len(chosen))
            return collect_ranges(
                source.model,
                chosen.feeds(source.metadata.preprocessing, fixed_batch(source.model)),
                weights_sha256=source.metadata.weights_sha256,
                source=f"{len(chosen)} pairs, {chosen.name}",
                balance=factors,
                threads=threads,
                on_batch=lambda count: bar.advance(task, count),
            )

    if isinstance(balance, bool):
        if not balance:
            return collect(pairs, {}, "measuring ranges")
        first = collect(pairs.spread(BALANCE_PAIRS), {}, "measuring channels")
        largest = {name: item.channels.largest for name, item in first.tensors.items() if item.channels is not None}
        balance = choose_factors(source.model, largest)
    return collect(pairs, balance, "measuring ranges")


def check_ranges(source: FloatModel, ranges: Ranges) -> None:
    """Raise :class:`InputError` if ranges were measured on another model."""
    if ranges.weights_sha256 != source.metadata.weights_sha256:
        raise InputError(
            f"the ranges were measured on a model with other weights than {source.path}: measure them anew"
        )


def calibrate(
    source: FloatModel,
    ranges: Ranges | None,
    output: str | Path,
    *,
    precision: str = "int8",
    method: str = "mse",
    target: str = "tensorrt",
    keep: Collection[str] = (),
    weight_bits: int = 8,
    pairs: PhotoPairs | None = None,
    data: str | None = None,
    found: Mapping[str, Any] | None = None,
    threads: int | None = None,
) -> CalibrationReport:
    """Quantize a model, compare it with the float model, and write it with what was found.

    Args:
        source: of :func:`load_float_model`.
        ranges: of :func:`measure_ranges`; not needed for fp16.
        output: file to write; it is complete, with its figures, even where the comparison fails.
        precision, method, target, keep, weight_bits: see :func:`cats.calibration.quantize.quantize`; or ``fp16``, of
            which only ``keep`` is a choice.
        pairs: to compare on; the shipped photos by default.
        data: annotated pairs ``KIND:DIR`` on which to measure PCK before and after.
        found: of :meth:`cats.calibration.search.SearchResult.to_dict`, for the metadata.
        threads: CPU threads; None takes all.

    Raises:
        InputError: an option is out of range, an image cannot be read, or the file cannot be written.
    """
    if precision == "fp16":
        moments = measure_moments(source.model, source.metadata.preprocessing)
        result = to_fp16(source.model, sorted(keep), moments)
    else:
        if ranges is None:
            raise InputError(f"{precision} needs ranges of the activations: measure them on photos")
        check_ranges(source, ranges)
        result = quantize(
            source.model, ranges, precision=precision, method=method, keep=keep, target=target, weight_bits=weight_bits
        )
    drift = measure_drift(
        source, result, pairs or demo_photos(), tolerance=TOLERANCE[precision], data=data, threads=threads
    )
    names = list(quantizable_modules(source.model))
    kept = tuple(name for name in names if is_inside(name, keep))
    quantized = tuple(name for name in names if name not in kept)
    part: dict[str, Any] = {"precision": precision, "quantized_modules": len(quantized), "kept": list(kept)}
    if ranges is not None:
        part |= {
            "method": method if precision == "int8" else "minmax",
            "target": target,
            "weight_bits": weight_bits,
            "pairs": ranges.pairs,
            "sources": list(ranges.sources),
            "balanced": sorted(ranges.balance),
        }
    if found is not None:
        part["search"] = dict(found)
    fitted = (source.metadata.calibration or {}).get("confidence")
    if fitted is not None:  # the mapping holds for this file too, as far as its flow does
        part["confidence"] = fitted
    metadata = source.metadata.with_(
        precision=precision, calibration=part, parity=drift.to_dict(), verified=drift.passed, accuracy=None
    )
    metadata = write_model(result, metadata, output)
    return CalibrationReport(Path(output), metadata, drift, quantized, kept)


def measure_drift(
    source: FloatModel,
    result: onnx.ModelProto,
    pairs: PhotoPairs,
    *,
    tolerance: float,
    data: str | None = None,
    threads: int | None = None,
) -> Parity:
    """Compare a quantized model with its float model, both in ONNX Runtime on the CPU; ``data`` as of
    :func:`calibrate`."""
    preprocessing, batch = source.metadata.preprocessing, fixed_batch(source.model)
    sessions = {
        name: ProbeSession(model, threads=threads) for name, model in (("float", source.model), ("quantized", result))
    }
    outputs = []
    with progress() as bar:
        for name, session in sessions.items():
            task = bar.add_task(f"{name} model, batches", total=-(-len(pairs) // (batch or 1)))
            found = []
            for feeds in pairs.feeds(preprocessing, batch):
                found.append(session(feeds))
                bar.advance(task)
            flow, confidence = (np.concatenate([item[k] for item in found]) for k in ("flow", "confidence"))
            outputs.append((flow[: len(pairs)], confidence[: len(pairs)]))
    against = "quantized against float32, both in ONNX Runtime on the CPU"
    parity = measure_parity(*outputs, tolerance=tolerance, source=f"{len(pairs)} pairs, {pairs.name}", against=against)
    if data is None:
        return parity
    matchers = {name: SessionMatcher(session, preprocessing, batch) for name, session in sessions.items()}
    return replace(parity, pck=pck_drift(matchers, data))
