"""Mixed precision: the fewest and cheapest modules to leave in float with which a bound on the matches holds."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cats.calibration.graph import condense
from cats.calibration.studies.sensitivity import measure_sensitivity
from cats.calibration.variants import Effect, Variants, group_modules
from cats.core.console import note, progress, stderr, table
from cats.core.errors import InputError, VerificationError


@dataclass(frozen=True)
class Bound:
    """What must hold on the pairs that variants are judged by; at least one of both.

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

    def __str__(self) -> str:
        parts = [] if self.max_drift is None else [f"p99 {self.max_drift:g} px"]
        return " and ".join(parts + ([] if self.max_pck_drop is None else [f"PCK drop {self.max_pck_drop:g}"]))


@dataclass(frozen=True)
class Kept:
    """Modules that stay in float, and why.

    Attributes:
        name: the module, or the block.
        modules: what it consists of.
        alone_px: 99th percentile of the flow difference with it alone in lower precision.
        without_px: the same with everything in lower precision but the other kept ones.
        share: of the whole model's work, by :attr:`cats.calibration.variants.Variants.costs`.
    """

    name: str
    modules: tuple[str, ...]
    alone_px: float
    without_px: float
    share: float


@dataclass(frozen=True)
class SearchResult:
    """The answer of a search.

    Attributes:
        keep: modules in float, in graph order.
        why: the same by the names under which they were varied, the worst first.
        effect: of the answer.
        everything: effect with nothing kept.
        measured: number of variants that were measured.
    """

    keep: tuple[str, ...]
    why: tuple[Kept, ...]
    effect: Effect
    everything: Effect
    bound: Bound
    precision: str
    pairs: int
    source: str
    measured: int

    def to_dict(self) -> dict[str, Any]:
        """The part ``search`` of the metadata's ``calibration``."""
        return {
            "bound": asdict(self.bound),
            "everything_p99_px": round(self.everything.p99_px, 4),
            "kept": [asdict(item) for item in self.why],
            "measured": self.measured,
        }


def search(variants: Variants, bound: Bound, *, by: str = "block") -> SearchResult:
    """Find the modules to keep in float; none where the bound holds without.

    The modules are ranked by the square of what each does alone, as noise adds up, over its shares of the model's
    work and weights; halving finds how many of the first must be kept; then each of these, the dearest first, is
    given up where the bound still holds. Another set that is no subset of the ranking's beginning is not looked
    for. The choice depends on drift, PCK and counted operations alone, never on times, so that equal inputs give
    equal answers.

    Args:
        variants: on pairs to judge by.
        bound: what must hold.
        by: ``module`` or ``block``, see :func:`cats.calibration.variants.group_modules`.

    Raises:
        InputError: a bound on PCK without annotated pairs, or ``by`` is unknown.
        VerificationError: the bound holds only with nothing in lower precision.
    """
    if bound.max_pck_drop is not None and variants.dataset is None:
        raise InputError("--max-pck-drop needs annotated pairs: give --check KIND:DIR")
    chosen = group_modules(variants.candidates, by)
    everything = variants.measure(())
    kept: list[str] = []
    alone: dict[str, float] = {}
    work = _shares(variants.costs, chosen)
    size = _shares(variants.sizes, chosen)
    cost = {name: work[name] + size[name] for name in chosen}

    def measure(names: Collection[str]) -> Effect:
        return variants.measure({module for name in names for module in chosen[name]})

    if not bound.holds(everything):
        ranking = measure_sensitivity(variants, by=by, cumulative=False).ranked
        alone = {item.name: item.alone.p99_px for item in ranking}
        order = sorted(alone, key=lambda name: (-(alone[name] ** 2) / cost[name], name))
        kept = _find_shortest(order, lambda names: bound.holds(measure(names)))
        if len(kept) == len(order):
            last = measure(order[:-1])
            raise VerificationError(
                f"{variants.precision} cannot meet the bound of {bound}: with {order[-1]} alone in it "
                f"matches still move by {last.p99_px:.2f} px (p99); loosen the bound, or run the float file"
            )
        kept = _give_up(kept, cost, lambda names: bound.holds(measure(names)))
    why = [
        Kept(
            name,
            tuple(chosen[name]),
            round(alone[name], 4),
            round(measure([other for other in kept if other != name]).p99_px, 4),
            round(work[name], 4),
        )
        for name in kept
    ]
    keep = {module for item in why for module in item.modules}
    return SearchResult(
        tuple(name for name in variants.candidates if name in keep),
        tuple(sorted(why, key=lambda item: (-item.without_px, item.name))),
        measure(kept),
        everything,
        bound,
        variants.precision,
        len(variants.pairs),
        variants.pairs.name,
        len(variants.measured),
    )


def _shares(amounts: Mapping[str, float], chosen: Mapping[str, Collection[str]]) -> dict[str, float]:
    """Of the whole, by the names under which modules are varied."""
    total = sum(amounts[module] for members in chosen.values() for module in members) or 1
    return {name: sum(amounts[module] for module in members) / total for name, members in chosen.items()}


def _find_shortest(order: list[str], holds: Callable[[list[str]], bool]) -> list[str]:
    """Shortest beginning of ``order`` that holds, if longer ones do too; all of it where none shorter was found."""
    with progress() as bar:
        task = bar.add_task("how many to keep", total=max(1, math.ceil(math.log2(len(order) + 1))))

        def enough(count: int) -> bool:
            bar.advance(task)
            return holds(order[:count])

        return order[: bisect.bisect_left(range(len(order)), True, key=enough)]


def _give_up(kept: list[str], cost: dict[str, float], holds: Callable[[list[str]], bool]) -> list[str]:
    """``kept`` without those, the dearest first, without which the bound holds; all of the rest are needed.

    Whoever was needed is tried again only when all have had their turn: with less in float, it seldom is no more.
    """
    with progress() as bar:
        task = bar.add_task("giving modules up", total=None)
        before: list[str] = []
        while kept != before:
            before = kept
            for name in sorted(kept, key=lambda name: (-cost[name], name)):
                rest = [other for other in kept if other != name]
                if holds(rest):
                    kept = rest
                bar.advance(task)
    return kept


def parse_bound(max_drift: str | None, max_pck_drop: float | None, default: float) -> Bound:
    """The bound of the options; ``max_drift`` may end in px; ``default`` pixels where neither is given."""
    if max_drift is None and max_pck_drop is None:
        return Bound(default)
    try:
        drift = None if max_drift is None else float(max_drift.removesuffix("px"))
    except ValueError:
        raise InputError(f"--max-drift {max_drift}: give pixels at 256 x 256, such as 0.5px") from None
    return Bound(drift, max_pck_drop)


def print_answer(result: SearchResult, names: Collection[str]) -> None:
    """Show on stderr what stays in float and why; ``names`` are all modules that were searched among."""
    if not result.why:
        note(f"everything in {result.precision}: p99 {result.effect.p99_px:.3f} px, bound {result.bound}")
        return
    rows = [[item.name, f"{item.alone_px:.2f}", f"{item.without_px:.2f}", f"{item.share:.1%}"] for item in result.why]
    note(
        f"p99 of the flow difference: {result.everything.p99_px:.2f} px with everything in {result.precision}, "
        f"{result.effect.p99_px:.2f} px with these modules in float32 (bound {result.bound}). What each does alone in "
        f"{result.precision}, where p99 would be if it were given up, and its share of the work:"
    )
    stderr.print(table("", ["stays in float32", "alone, px", "given up", "work"], rows))
    note(
        f"kept in float32: {', '.join(condense(result.keep, names))}; judged on {result.pairs} pairs, {result.source}; "
        f"{result.measured} variants measured"
    )
