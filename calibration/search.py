"""Mixed precision: the fewest modules in higher precision with which a bound on the matches holds."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cats.calibration.calibrate import calibrate
from cats.calibration.graph import condensed
from cats.calibration.studies.sensitivity import measure_sensitivity
from cats.calibration.variants import Effect, Variants, groups
from cats.core.console import note, print_json, progress, stdout, table
from cats.core.errors import InputError, VerificationError
from cats.core.metadata import write_model
from cats.evaluation.parity import TOLERANCE

_FRONT = 8  # variants that are timed against one another
_ROUNDS = 12


@dataclass(frozen=True)
class Bound:
    """What must hold on the validation pairs; at least one of both.

    Attributes:
        max_drift: largest 99th percentile of the flow difference, in pixels at 256 x 256.
        max_pck_drop: largest loss of PCK@0.1, in points.
    """

    max_drift: float | None = None
    max_pck_drop: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.max_drift, self.max_pck_drop) if value is not None]
        if not given or not all(math.isfinite(value) and value >= 0 for value in given):
            raise InputError("give a bound of zero or more: --max-drift in pixels, or --max-pck-drop in points of PCK")

    def holds(self, effect: Effect) -> bool:
        """Whether a variant satisfies it."""
        if self.max_drift is not None and effect.p99_px > self.max_drift:
            return False
        if self.max_pck_drop is None:
            return True
        return effect.pck_drop is not None and effect.pck_drop <= self.max_pck_drop


@dataclass(frozen=True)
class FrontPoint:
    """One variant of the Pareto front.

    Attributes:
        keep: modules in higher precision.
        effect: against the float model, on the validation pairs.
        ms: median time of a run, taken in turns with the other points and the float model.
    """

    keep: tuple[str, ...]
    effect: Effect
    ms: float


@dataclass(frozen=True)
class SearchResult:
    """The answer of a search.

    Attributes:
        keep: modules in higher precision, in graph order.
        effect: of the answer.
        front: no other measured variant is both faster and closer to the float model; by time.
        float_ms: time of the float model, taken as those of the front.
        measured: number of variants that were measured.
    """

    keep: tuple[str, ...]
    effect: Effect
    front: tuple[FrontPoint, ...]
    float_ms: float
    bound: Bound
    precision: str
    pairs: int
    source: str
    measured: int

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {**asdict(self), "where": "ONNX Runtime on the CPU"}


def search(variants: Variants, bound: Bound, *, by: str = "module") -> SearchResult:
    """Find the fewest modules to keep.

    The modules are ranked by what each does alone; halving finds how many of the most sensitive must be kept; then each
    of these, the least sensitive first, is given up where the bound still holds. Another set of the same size or a
    smaller one that is no subset of the ranking's beginning is not looked for. The choice depends on drift and PCK
    alone, never on times, so that equal inputs give equal answers.

    Args:
        variants: on validation pairs that the ranges were not measured on.
        bound: what must hold.
        by: ``module`` or ``block``, see :func:`cats.calibration.variants.groups`.

    Raises:
        InputError: a bound on PCK without annotated pairs, or ``by`` is unknown.
        VerificationError: the bound holds only with nothing in lower precision.
    """
    if bound.max_pck_drop is not None and variants.dataset is None:
        raise InputError("--max-pck-drop needs annotated pairs: give --check KIND:DIR")
    chosen = groups(variants.candidates, by)
    order = [item.name for item in measure_sensitivity(variants, by=by, cumulative=False).ranked]

    def members(names: list[str]) -> set[str]:
        return {module for name in names for module in chosen[name]}

    def holds(names: list[str]) -> bool:
        return bound.holds(variants.measure(members(names)))

    kept = _halved(order, holds)
    if len(kept) == len(order):
        raise VerificationError(
            f"the bound holds only with every module in float32: {variants.precision} cannot meet it; loosen it"
        )
    with progress() as bar:
        task = bar.add_task("giving modules up", total=len(kept))
        for name in reversed(list(kept)):
            rest = [other for other in kept if other != name]
            if holds(rest):
                kept = rest
            bar.advance(task)
    answer = members(kept)
    front, float_ms = _front(variants, answer)
    return SearchResult(
        tuple(name for name in variants.candidates if name in answer),
        variants.measure(answer),
        front,
        float_ms,
        bound,
        variants.precision,
        len(variants.pairs),
        variants.pairs.name,
        len(variants.measured),
    )


def _halved(order: list[str], holds: Any) -> list[str]:
    """Shortest beginning of ``order`` that holds, if longer ones do too; all of it where none shorter was found."""
    low, high = 0, len(order)  # high holds: everything kept is the float model
    with progress() as bar:
        task = bar.add_task("how many to keep", total=max(1, math.ceil(math.log2(len(order) + 1))))
        while low < high:
            middle = (low + high) // 2
            if holds(order[:middle]):
                high = middle
            else:
                low = middle + 1
            bar.advance(task)
    return order[:high]


def _front(variants: Variants, answer: set[str]) -> tuple[tuple[FrontPoint, ...], float]:
    """The Pareto front of what was measured, timed in turns; the answer is among the timed ones."""
    measured = variants.measured
    best = _undominated([(effect.ms, effect.p99_px, key) for key, effect in measured.items()])
    if len(best) > _FRONT:
        best = [best[k * (len(best) - 1) // (_FRONT - 1)] for k in range(_FRONT)]
    keys = list(dict.fromkeys([*best, tuple(sorted(answer))]))
    everything = tuple(sorted(variants.candidates))
    keys = [key for key in keys if key != everything]
    times = _times(variants, [*keys, everything])
    effects = {key: variants.measure(key) for key in keys}
    front = _undominated([(times[key], effects[key].p99_px, key) for key in keys])
    return tuple(FrontPoint(key, effects[key], times[key]) for key in front), times[everything]


def _undominated(points: list[tuple[float, float, tuple[str, ...]]]) -> list[tuple[str, ...]]:
    found, closest = [], math.inf
    for _, drift, key in sorted(points):
        if drift < closest:
            found.append(key)
            closest = drift
    return found


def _times(variants: Variants, keys: list[tuple[str, ...]]) -> dict[tuple[str, ...], float]:
    """Median time of a run of each variant in milliseconds, all in turns so that disturbances hit all alike."""
    sessions = {key: variants.session(key) for key in keys}
    feed = variants.feeds()[0]
    times: dict[tuple[str, ...], list[float]] = {key: [] for key in keys}
    for session in sessions.values():
        session(feed)
    with progress() as bar:
        task = bar.add_task("timing, rounds", total=_ROUNDS)
        for _ in range(_ROUNDS):
            for key, session in sessions.items():
                session(feed)  # the idle threads of the one before spin for a while
                start = time.perf_counter()
                session(feed)
                times[key].append((time.perf_counter() - start) * 1000)
            bar.advance(task)
    return {key: round(statistics.median(values), 4) for key, values in times.items()}


def parse_bound(max_drift: str | None, max_pck_drop: float | None) -> Bound:
    """The bound of the options; ``max_drift`` may end in px."""
    try:
        drift = None if max_drift is None else float(max_drift.removesuffix("px"))
    except ValueError:
        raise InputError(f"--max-drift {max_drift}: give pixels at 256 x 256, such as 0.5px") from None
    return Bound(drift, max_pck_drop)


def print_answer(result: SearchResult, names: Collection[str], *, as_json: bool) -> None:
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
