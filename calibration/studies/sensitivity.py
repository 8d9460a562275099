"""What each module's lower precision does to the matches, one at a time and cumulatively."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cats.calibration.variants import Effect, Variants, group_modules
from cats.core.console import progress, stdout, table
from cats.evaluation.figures import save_figure

_SHOWN = 40  # modules in the plot


@dataclass(frozen=True)
class ModuleEffect:
    """Effect of one module, or of a block of modules.

    Attributes:
        name: PyTorch path.
        modules, nodes: what it consists of, in PyTorch and in ONNX.
        alone: with this module alone in lower precision.
        cumulative: with it and all less sensitive ones in lower precision.
    """

    name: str
    modules: tuple[str, ...]
    nodes: tuple[str, ...]
    alone: Effect
    cumulative: Effect | None = None


@dataclass(frozen=True)
class Sensitivity:
    """All modules, the most sensitive first."""

    ranked: tuple[ModuleEffect, ...]
    precision: str
    pairs: int
    source: str

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            "precision": self.precision,
            "pairs": self.pairs,
            "source": self.source,
            "frame": [256, 256],
            "modules": [asdict(item) for item in self.ranked],
        }


def measure_sensitivity(variants: Variants, *, by: str = "module", cumulative: bool = True) -> Sensitivity:
    """Measure all modules, with a progress bar.

    In fp16 the operators of a module that encloses others, such as residual sums, are typed along with each of them.

    Args:
        variants: of the model.
        by: ``module`` or ``block``, see :func:`cats.calibration.variants.group_modules`.
        cumulative: also measure the modules added one after the other, the least sensitive first.

    Raises:
        InputError: ``by`` is unknown.
    """
    chosen = group_modules(variants.candidates, by)
    with progress() as bar:
        task = bar.add_task("one at a time", total=len(chosen))
        alone = {}
        for name, members in chosen.items():
            alone[name] = variants.measure(set(variants.candidates) - set(members))
            bar.advance(task)
        order = sorted(chosen, key=lambda name: (-alone[name].p99_px, -alone[name].median_px, name))
        together: dict[str, Effect] = {}
        if cumulative:
            task = bar.add_task("cumulatively", total=len(chosen))
            kept = set(variants.candidates)
            for name in reversed(order):
                kept -= set(chosen[name])
                together[name] = variants.measure(kept)
                bar.advance(task)
    ranked = tuple(
        ModuleEffect(
            name,
            tuple(chosen[name]),
            tuple(node for module in chosen[name] for node in variants.nodes[module]),
            alone[name],
            together.get(name),
        )
        for name in order
    )
    return Sensitivity(ranked, variants.precision, len(variants.pairs), variants.pairs.name)


def plot_sensitivity(result: Sensitivity, path: str | Path) -> None:
    """Write the most sensitive modules as a bar chart; the suffix of ``path`` gives the format (png, svg, pdf).

    Raises:
        InputError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    shown = result.ranked[:_SHOWN]
    figure = Figure(figsize=(9, 1.5 + 0.24 * len(shown)), dpi=120, layout="constrained")
    axes = figure.subplots()
    places = range(len(shown))
    axes.barh(places, [item.alone.p99_px for item in shown], label="alone")
    if all(item.cumulative is not None for item in shown):
        values = [item.cumulative.p99_px for item in shown if item.cumulative is not None]
        axes.plot(values, places, "k.-", label="with all below")
    labels = [f"{item.name}  ({item.nodes[0].rpartition('/')[2] if item.nodes else ''})" for item in shown]
    axes.set_yticks(places, labels, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("99th percentile of the flow difference, pixels at 256 x 256")
    axes.set_title(f"{result.precision}: {result.pairs} pairs, {result.source}", fontsize=9)
    axes.legend()
    save_figure(figure, path)


def print_ranking(result: Sensitivity) -> None:
    """Print the ranked table."""
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


def _cells(effect: Effect | None, annotated: bool) -> list[str]:
    if effect is None:
        return ["", "", *([""] if annotated else [])]
    drop = [] if effect.pck_drop is None else [f"{effect.pck_drop:.2f}"]
    return [f"{effect.median_px:.3f}", f"{effect.p99_px:.3f}", *drop]
