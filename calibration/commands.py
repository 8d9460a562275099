"""What ``cats-calibrate`` does besides quantizing: divergence, sensitivity, search and confidence on the terminal."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

from cats.calibration.calibrate import FloatModel, calibrate, load_float_model, measure_ranges
from cats.calibration.inputs import PairSet, demo_pairs, pairs_from_data
from cats.calibration.modules import condensed
from cats.calibration.ranges import Ranges
from cats.calibration.studies.search import Bound, SearchResult
from cats.calibration.studies.sensitivity import Sensitivity
from cats.calibration.studies.variants import Effect, Variants
from cats.core.console import note, print_json, stdout, table
from cats.core.errors import InputError, VerificationError
from cats.core.metadata import write_model
from cats.evaluation.parity import TOLERANCE
from cats.export.fp16.assign import HALF_LARGEST, LARGE_ACTIVATION

VALIDATION = 8


def show_divergence(
    a: Path, b: Path, pairs: PairSet | None, *, threshold: float | None, threads: int | None, as_json: bool
) -> None:
    """Print where two files part; raises :class:`VerificationError` if they do."""
    from cats.calibration.studies.divergence import find_divergence

    found = find_divergence(a, b, pairs or demo_pairs(), threshold=threshold, threads=threads)
    if as_json:
        print_json(found.to_dict())
    else:
        first = found.nodes.index(found.first) if found.first else len(found.nodes)
        shown = found.nodes[max(0, first - 8) : first + 5]
        rows = [
            [
                f"{'> ' if item is found.first else ''}{item.node}",
                _percent(item.relative),
                _percent(item.step),
                f"{item.largest_a:.4g}",
                f"{item.largest_b:.4g}",
                str(item.not_finite_b),
            ]
            for item in shown
        ]
        columns = ["node", "relative error", "added", "largest in A", "largest in B", "not finite in B"]
        stdout.print(table(f"{a} and {b}, {found.source}", columns, rows))
    for item in found.overflowing:
        largest = max(item.largest_a, item.largest_b)
        if largest > HALF_LARGEST:
            note(f"warning: {item.node} reaches {largest:.4g}: float16 overflows there")
        elif largest > LARGE_ACTIVATION:
            note(f"warning: {item.node} reaches {largest:.4g}, near the end of float16 (65504)")
        if item.not_finite_a or item.not_finite_b:
            note(f"warning: {item.node} is not finite: {item.not_finite_a} values in A, {item.not_finite_b} in B")
    step = found.largest_step
    note(f"most is added at {step.node} (module {step.module}): {_percent(step.step)}")
    if found.first is not None:
        item = found.first
        raise VerificationError(
            f"{a} and {b} part at node {item.node}, module {item.module or 'of the graph itself'}: relative error "
            f"{_percent(item.relative)}, threshold {_percent(found.threshold)}"
        )
    note(f"no divergence: no relative error beyond {_percent(found.threshold)} in {len(found.nodes)} values")


def make_variants(
    source: FloatModel,
    photos: PairSet | None,
    from_ranges: list[Path],
    *,
    precision: str,
    balance: bool,
    options: dict[str, Any],
    check: str | None,
    limit: int,
    threads: int | None,
    state: Path | None,
) -> Variants:
    """Variants on validation pairs that share no pair with those the ranges are measured on.

    Raises:
        InputError: too few pairs to have both.
    """
    from cats.calibration.calibrate import check_ranges
    from cats.data import open_dataset

    dataset = open_dataset(check).select(limit=limit) if check is not None else None
    if photos is None:
        if check is None:
            raise InputError("--from-ranges leaves no pairs to judge by: give --check KIND:DIR too")
        judged_on, measured_on = pairs_from_data(check).spread(VALIDATION), None
    else:
        chosen = photos.spread(limit)
        if len(chosen) < 4:
            raise InputError(f"{photos.name} gives {len(chosen)} pairs: at least 4 are needed to hold some out")
        measured_on, judged_on = chosen.split(max(1, min(VALIDATION, len(chosen) // 4)))
    ranges = None
    if measured_on is None and from_ranges:
        ranges = Ranges.load_all(from_ranges)
        check_ranges(source, ranges)
    elif measured_on is not None and precision != "fp16":
        ranges = measure_ranges(source, measured_on, balance=balance, threads=threads)
    return Variants(
        source,
        ranges,
        judged_on,
        precision=precision,
        options={} if precision == "fp16" else options,
        dataset=dataset,
        threads=threads,
        state=state,
    )


def show_sensitivity(result: Sensitivity, *, as_json: bool) -> None:
    """Print the ranked table, or JSON."""
    if as_json:
        print_json(result.to_dict())
        return
    annotated = any(item.alone.pck_drop is not None for item in result.ranked)
    rows = [
        [
            item.name,
            item.nodes[0] if item.nodes else "",
            *_cells(item.alone, annotated),
            *_cells(item.cumulative, annotated),
        ]
        for item in result.ranked
    ]
    figures = ["median px", "p99 px", *(["PCK drop"] if annotated else [])]
    columns = ["module", "first node", *figures, *(f"{name}, with all below" for name in figures)]
    stdout.print(table(f"{result.precision}, {result.pairs} pairs, {result.source}", columns, rows))


def show_search(result: SearchResult, names: Collection[str], *, as_json: bool) -> None:
    """Print the answer and the Pareto front, or JSON; ``names`` are all modules that were searched among."""
    if as_json:
        print_json(result.to_dict())
        return
    rows = [
        [str(len(point.keep)), f"{point.ms:.2f}", f"{point.effect.p99_px:.3f}", f"{point.ms / result.float_ms:.2f}"]
        for point in result.front
    ]
    columns = ["modules kept", "ms", "p99 px", "of the float model's time"]
    stdout.print(
        table(f"Pareto front in ONNX Runtime on this CPU; float model {result.float_ms:.2f} ms", columns, rows)
    )
    note(f"kept in float32: {', '.join(condensed(result.keep, names)) or 'nothing'}")
    note(
        f"p99 {result.effect.p99_px:.3f} px on {result.pairs} pairs, {result.source}; "
        f"{result.measured} variants measured"
    )


def write_answer(variants: Variants, result: SearchResult, output: Path) -> bool:
    """Write the file that a search chose, with its figures; whether it is within the tolerance of its precision."""
    source = variants.source
    if variants.precision != "fp16":
        assert variants.ranges is not None
        verified = calibrate(
            source,
            variants.ranges,
            output,
            precision=variants.precision,
            keep=result.keep,
            pairs=variants.pairs,
            label="mixed" if result.keep else None,
            threads=variants.threads,
            **variants.options,
        ).drift.passed
    else:
        effect = result.effect
        tolerance = TOLERANCE["fp16"]
        verified = effect.p99_px <= tolerance
        parity = {"median_px": effect.median_px, "p99_px": effect.p99_px, "max_px": effect.max_px}
        metadata = source.metadata.with_(
            precision="fp16",
            calibration={**(source.metadata.calibration or {}), "precision": "fp16", "kept": list(result.keep)},
            parity={**parity, "pairs": result.pairs, "source": result.source, "tolerance_px": tolerance},
            verified=verified,
            accuracy=None,
        )
        write_model(variants.build(result.keep), metadata, output)
    note(f"{output} written")
    return verified


def fit_and_write(
    model: Path, data: str | None, output: Path, *, limit: int, plot: Path | None, threads: int | None, as_json: bool
) -> None:
    """Fit temperature and confidence, print the figures and write the model."""
    from cats.calibration.studies.confidence import fit_confidence, known_pairs, plot_reliability, with_confidence

    if data is None:
        raise InputError("--fit-confidence needs pairs with known flow: give --data KIND:DIR or categories:DIR")
    source = load_float_model(model)
    metadata = source.metadata
    fit_on, held_out, what = known_pairs(data, metadata.grid[0], metadata.preprocessing.size[0], limit)
    fit = fit_confidence(source, fit_on, held_out, what, threads=threads)
    if plot is not None:
        plot_reliability(fit, plot)
    write_model(*with_confidence(source, fit), output)
    if as_json:
        print_json(fit.to_dict())
        return
    rows = [[name, f"{fit.before[name]:.4f}", f"{fit.after[name]:.4f}"] for name in fit.before]
    stdout.print(table(f"{fit.held_out} held-out pairs, {what}", ["", "before", "after"], rows))
    note(f"{output}: temperature {fit.old_temperature:g} -> {fit.temperature:g}")


def bound_of(max_drift: str | None, max_pck_drop: float | None) -> Bound:
    """The bound of the options; ``max_drift`` may end in px."""
    try:
        drift = None if max_drift is None else float(max_drift.removesuffix("px"))
    except ValueError:
        raise InputError(f"--max-drift {max_drift}: give pixels at 256 x 256, such as 0.5px") from None
    return Bound(drift, max_pck_drop)


def _cells(effect: Effect | None, annotated: bool) -> list[str]:
    if effect is None:
        return ["", "", *([""] if annotated else [])]
    drop = [] if effect.pck_drop is None else [f"{effect.pck_drop:.2f}"]
    return [f"{effect.median_px:.3f}", f"{effect.p99_px:.3f}", *drop]


def _percent(value: float) -> str:
    return f"{value:.2%}" if math.isfinite(value) else "not finite"
