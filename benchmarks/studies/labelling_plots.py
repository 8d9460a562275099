"""Pictures of what ``labelling.py`` recorded: PCK by number of labelled photos, and the reliability diagram.

Usage: python -m cats.benchmarks.studies.labelling_plots benchmarks/results/labelling.json docs/pictures
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, PercentFormatter

from cats.benchmarks.studies.labelling import COUNTS
from cats.evaluation.figures import save_figure

_INK, _MUTED = "#1f2933", "#9aa5b1"
_LINES = {
    "one look": ("one look", "#9aa5b1", "o"),
    "two looks, mode, weights": ("two looks", "#2563a8", "o"),
    "through 4": ("two looks, and through four other photos", "#e07b39", "s"),
}


def _axes(figure: Figure) -> Any:
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.tick_params(colors=_INK)
    return axes


def plot_pck(record: dict[str, Any], path: Path) -> None:
    """PCK@0.1 against the number of labelled photos, with the lowest and highest draw."""
    figure = Figure(figsize=(6.4, 4), dpi=150, layout="constrained")
    axes = _axes(figure)
    for step, (title, colour, marker) in _LINES.items():
        rows = sorted((row for row in record["pck"] if row["step"] == step), key=lambda row: row["references"])
        counts, pck = [row["references"] for row in rows], [row["pck"] for row in rows]
        low, high = [min(row["draws"]) for row in rows], [max(row["draws"]) for row in rows]
        axes.plot(counts, pck, color=colour, marker=marker, label=title)
        axes.fill_between(counts, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.xaxis.set_major_locator(FixedLocator(COUNTS))
    axes.set_xlabel("labelled photos")
    axes.set_ylabel("PCK@0.1 (%)")
    axes.legend(frameon=False, loc="lower right")
    save_figure(figure, path)


def plot_reliability(record: dict[str, Any], path: Path) -> None:
    """Share of right points against the probability that was given, for categories that took no part in the fit."""
    figure = Figure(figsize=(4.8, 4.4), dpi=150, layout="constrained")
    axes = _axes(figure)
    probability = record["probability"]
    given, right, number = zip(*probability["reliability"], strict=True)
    axes.plot([0, 1], [0, 1], color=_MUTED, linestyle="--", linewidth=1)
    sizes = [15 + 285 * count / max(number) for count in number]
    axes.scatter(given, right, s=sizes, color="#2563a8", alpha=0.8, zorder=3, clip_on=False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_aspect("equal")
    axes.set_xlabel("probability given")
    axes.set_ylabel("points that are right")
    axes.set_title(
        f"{probability['points']} points; expected calibration error {probability['ece']:.3f}", fontsize=10, color=_INK
    )
    save_figure(figure, path)


def main() -> None:
    """Both pictures into a folder."""
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    record, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    plot_pck(record, folder / "labelling-pck.png")
    plot_reliability(record, folder / "labelling-reliability.png")


if __name__ == "__main__":
    main()
