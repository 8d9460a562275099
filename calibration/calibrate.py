"""From a float32 export to a quantized file: ranges, Q/DQ, comparison, metadata."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import numpy_helper

from cats.calibration.balance import Factors, balance_channels, choose_factors
from cats.calibration.forms import FLOW, FloatFile, FloatModel, join_files
from cats.calibration.graph import describe_storage, is_half, name_nodes, quantizable_modules
from cats.calibration.input_moments import measure_inputs
from cats.calibration.quantize import quantize
from cats.calibration.ranges import Ranges, collect_ranges
from cats.calibration.sessions import ProbeSession, fixed_batch, sums_are_exact
from cats.core.console import progress
from cats.core.errors import InputError, ModelFileError
from cats.core.files import atomic_paths
from cats.core.metadata import Metadata, read_onnx_metadata, write_model
from cats.data.photo_pairs import PhotoPairs, demo_photos
from cats.evaluation.parity import TOLERANCE, Outputs, Parity, measure_parity, pck_drift
from cats.export.exported import ExportedModel, run_photos
from cats.export.fp16.assign import is_quantized, to_fp16
from cats.export.fp16.input_moments import measure_moments
from cats.export.modules import is_inside
from cats.runtime.backends import CHECKPOINT_SUFFIXES, ENGINE_SUFFIXES
from cats.runtime.split import KINDS as SPLIT
from cats.runtime.split import find_split, name_files

_DOMAINS = {"", "ai.onnx", "cats"}  # of the operators that an exported graph has
_IMAGES = ("image_a", "image_b")
_INTERFACE: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "pair": (_IMAGES, FLOW),
    "encoder": (("image",), ()),
    "matcher": ((), FLOW),
    "end-to-end": ((*_IMAGES, "points_a"), ("points_b", "points_confidence", *FLOW)),
}
"""Kind -> inputs and outputs that a file has at least."""

HELD_OUT = 16
BALANCE_PAIRS = 8
MOMENTS_PAIRS = 12


@dataclass(frozen=True)
class CalibrationReport:
    """What was written.

    Attributes:
        files: kind (pair, encoder, matcher, end-to-end) -> file.
        described: kind -> as embedded in that file.
        drift: their flow against the float model's.
        quantized, kept: modules of all files.
    """

    files: dict[str, Path]
    described: dict[str, Metadata]
    drift: Parity
    quantized: tuple[str, ...]
    kept: tuple[str, ...]

    @property
    def path(self) -> Path:
        """The file that computes the flow."""
        return list(self.files.values())[-1]

    @property
    def metadata(self) -> Metadata:
        """As embedded in it."""
        return list(self.described.values())[-1]


def load_pair(path: str | Path, advice: str) -> tuple[onnx.ModelProto, Metadata]:
    """Read a file of kind ``pair``.

    Raises:
        ModelFileError: not an ONNX file with CATs metadata, or of another kind, with ``advice`` what to give instead.
    """
    file = _read(Path(path), ("pair",), advice)
    return file.model, file.metadata


def _read(path: Path, kinds: Collection[str], advice: str) -> FloatFile:
    if Path(path).suffix.lower() in CHECKPOINT_SUFFIXES:
        raise ModelFileError(f"{path} is a checkpoint: export it first, cats-export --ckpt {path}")
    if Path(path).suffix.lower() in ENGINE_SUFFIXES:
        raise ModelFileError(f"{path} is an engine: give the .onnx file that it was built from")
    metadata = read_onnx_metadata(path)
    if metadata.kind not in kinds:
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
    for needed, given, what in zip(_INTERFACE[metadata.kind], interface, ("input", "output"), strict=True):
        if not set(needed) <= set(given):
            raise ModelFileError(f"{path} lacks an {what} {' or '.join(needed)}: export it again")
    for item in model.graph.initializer:
        values = numpy_helper.to_array(item)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ModelFileError(f"{path}: {item.name} has values that are not finite: the weights are broken")
    return FloatFile(path, name_nodes(model), metadata)


def load_float_model(path: str | Path, kinds: Collection[str] | None = None) -> FloatModel:
    """Read a model that can be calibrated: a file for pairs, an end-to-end file, or a split model by either file.

    Args:
        path: as :class:`cats.runtime.Matcher` takes it.
        kinds: of the files that the caller knows what to do with; None for all.

    Raises:
        ModelFileError: not an ONNX file with CATs metadata, of another kind, quantized already, typed in half
            precision, or exported for CPUs; one half of a split model is missing, or they do not fit
            (:func:`cats.calibration.forms.join_files`).
    """
    split = None if kinds is not None and "encoder" not in kinds else find_split(path)
    wanted = kinds or [kind for kind in _INTERFACE if kind not in SPLIT]
    advice = "give the file of cats-export without --split" + ("" if "end-to-end" in wanted else " and --end-to-end")
    if split is None:
        read = [_read(Path(path), wanted, advice)]
    else:
        fix = "the two files of cats-export --split, under the names that it gave them"
        read = [_read(file, (kind,), f"give {fix}") for file, kind in zip(split, SPLIT, strict=True)]
    for file in read:
        _check_float(file)
    joined = join_files(Path(path), {file.metadata.kind: file for file in read})
    if not quantizable_modules(joined.model):
        raise ModelFileError(f"{path}: no weight has the name of its layer, another tool renamed them: export it again")
    return joined


def _check_float(file: FloatFile) -> None:
    path, model, metadata = file.path, file.model, file.metadata
    if is_quantized(model) or metadata.precision in ("int8", "fp8", "mixed"):
        raise ModelFileError(f"{path} is quantized already ({metadata.precision}): give the float32 export")
    if is_half(model) or metadata.precision not in ("fp32", "unknown"):
        raise ModelFileError(f"{path} is typed in {metadata.precision}: give the float32 export (without --fp16)")
    if metadata.target == "cpu":
        raise ModelFileError(f"{path} was made for float32 on CPUs: give the export without --for cpu")


def check_form(source: FloatModel, precision: str) -> None:
    """Raise :class:`InputError` for float16 of another form than pairs, which is exported so: it decides on the values
    between the files, too."""
    if precision == "fp16" and source.files:
        raise InputError(
            f"{source.path} is {' and '.join(source.files)}: type it in float16 by cats-export --fp16 "
            "--float32 MODULE, with the modules that a search on the file for pairs leaves in float32"
        )


def kept_modules(path: str | Path, source: FloatModel) -> list[str]:
    """Modules that a quantized file of the same weights leaves in float32; of a split model both files count.

    Raises:
        ModelFileError: it cannot be read, is of other weights, or not quantized.
    """
    found: list[str] = []
    for file in find_split(path) or (Path(path),):
        metadata = read_onnx_metadata(file)
        if metadata.weights_sha256 != source.metadata.weights_sha256:
            raise ModelFileError(f"{file} has other weights than {source.path}: search anew, without --keep-as")
        kept = (metadata.calibration or {}).get("kept")
        if not isinstance(kept, list):
            raise ModelFileError(f"{file} is not quantized: give a file of cats-calibrate")
        found += kept
    return found


def measure_ranges(
    source: FloatModel, pairs: PhotoPairs, *, balance: bool | Factors = True, threads: int | None = None
) -> Ranges:
    """Ranges of the activations over all pairs, and moments of the layers' inputs over some, with a progress bar.

    Args:
        source: of :func:`load_float_model`.
        pairs: to measure on.
        balance: balance channels (:mod:`cats.calibration.balance`), with factors found on a few of the pairs or with
            given ones.
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
        factors: Factors = {}
        if balance:
            first = collect(pairs.spread(BALANCE_PAIRS), {}, "measuring channels")
            largest = {name: item.channels.largest for name, item in first.tensors.items() if item.channels is not None}
            factors = choose_factors(source.model, largest)
        balance = factors
    ranges = collect(pairs, balance, "measuring ranges")
    few = pairs.spread(MOMENTS_PAIRS)
    with progress() as bar:
        batches = few.feeds(source.metadata.preprocessing, fixed_batch(source.model))
        watched = bar.track(batches, len(few), description="measuring moments, pairs")
        moments = measure_inputs(balance_channels(source.model, balance), watched, threads)
    return replace(ranges, moments=moments)


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
        output: file to write, or the name of two (:func:`cats.runtime.split.name_files`); it is complete, with its
            figures, even where the comparison fails.
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
        check_form(source, precision)
        moments = measure_moments(source.model, source.metadata.preprocessing)
        result = to_fp16(source.model, sorted(keep), moments)
    else:
        if ranges is None:
            raise InputError(f"{precision} needs ranges of the activations: measure them on photos")
        check_ranges(source, ranges)
        result = quantize(
            source.model, ranges, precision=precision, method=method, keep=keep, target=target, weight_bits=weight_bits
        )
    models = source.take_apart(result)
    drift = measure_drift(
        source, models, pairs or demo_photos(), tolerance=TOLERANCE[precision], data=data, threads=threads
    )
    names = list(quantizable_modules(source.model))
    kept = tuple(name for name in names if is_inside(name, keep))
    quantized = tuple(name for name in names if name not in kept)
    part: dict[str, Any] = {"precision": precision}
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
    files = name_files(output, source.by_kind)
    described = {}
    with atomic_paths(*files.values()) as temporaries:
        for kind, temporary in zip(files, temporaries, strict=True):
            metadata = _describe(source.by_kind[kind], part, precision, drift, quantized, kept)
            if precision != "fp16":
                metadata = metadata.with_(weights=describe_storage(models[kind]))
            described[kind] = write_model(models[kind], metadata, temporary)
    return CalibrationReport(files, described, drift, quantized, kept)


def _describe(
    file: FloatFile,
    part: Mapping[str, Any],
    precision: str,
    drift: Parity,
    quantized: Collection[str],
    kept: Collection[str],
) -> Metadata:
    """What the quantized file says about itself: how it was made, of the modules those that are its own."""
    own = quantizable_modules(file.model)
    calibration = dict(part) | {
        "quantized_modules": sum(name in own for name in quantized),
        "kept": [name for name in kept if name in own],
    }
    fitted = (file.metadata.calibration or {}).get("confidence")
    if fitted is not None:  # the mapping holds for this file too, as far as its flow does
        calibration["confidence"] = fitted
    if precision != "fp16" and not calibration["quantized_modules"]:
        precision = "fp32"  # a half of a split model that the search left alone
    return file.metadata.with_(
        precision=precision, calibration=calibration, parity=drift.to_dict(), verified=drift.passed, accuracy=None
    )


def measure_drift(
    source: FloatModel,
    models: Mapping[str, onnx.ModelProto],
    pairs: PhotoPairs,
    *,
    tolerance: float,
    data: str | None = None,
    threads: int | None = None,
) -> Parity:
    """Compare the files of a quantized model with its float files, both in ONNX Runtime on the CPU, end-to-end ones
    from raw pixels.

    Args:
        models: by kind, of :meth:`.FloatModel.take_apart`.
        tolerance: largest accepted 99th percentile, in pixels.
        data: annotated pairs ``KIND:DIR``, to compare PCK too.
    """
    preprocessing, batch = source.metadata.preprocessing, fixed_batch(source.model)
    floats = source.take_apart(source.model)
    matchers = {
        name: ExportedModel(files, preprocessing, batch, partial(ProbeSession, threads=threads))
        for name, files in (("float", floats), ("quantized", models))
    }
    outputs: list[Outputs] = []
    with progress() as bar:
        for name, matcher in matchers.items():
            points_px = None
            task = bar.add_task(f"{name} model, batches", total=-(-len(pairs) // (batch or 1)))
            found: list[Outputs] = []
            if matcher.takes_pixels:
                for pair in pairs.pairs:
                    values, away = run_photos(matcher, PhotoPairs(pairs.name, (pair,)))
                    points_px = max(points_px or 0.0, away)
                    found.append(values)
                    bar.advance(task)
            else:
                for feeds in pairs.feeds(preprocessing, batch):
                    results = matcher.run(feeds["image_a"], feeds["image_b"])
                    found.append((results["flow"], results["confidence"]))
                    bar.advance(task)
            flow, confidence = (np.concatenate(part)[: len(pairs)] for part in zip(*found, strict=True))
            outputs.append((flow, confidence))
    how = "quantized, its sums exact as on CPUs with VNNI," if sums_are_exact() else "quantized"
    against = f"{how} against float32, both in ONNX Runtime on the CPU"
    parity = measure_parity(*outputs, tolerance=tolerance, source=f"{len(pairs)} pairs, {pairs.name}", against=against)
    return replace(parity, points_px=points_px, pck=None if data is None else pck_drift(matchers, data))
