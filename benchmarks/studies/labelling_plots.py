"""Pictures of what ``labelling.py`` recorded: PCK by number of labelled photos, and the reliability diagram.

Usage: python -m cats.benchmarks.studies.labelling_plots benchmarks/results/labelling.json docs/pictures
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, PercentFormatter

from cats.benchmarks.studies.labelling import COUNTS
from cats.evaluation.figures import save_figure

_INK, _MUTED = "#1f2933", "#9aa5b1"
_PANELS = {  # other draws of references in each, so lines of both are not to be compared
    "labelled photos drawn for each photo": {
        "two looks, mode, weights, shape": ("two looks", "#2563a8"),
        "one look": ("one look", "#7b8794"),
    },
    "labelled photos drawn for a category": {
        "through 4": ("with four other photos", "#e07b39"),
        "through 0": ("two looks", "#2563a8"),
    },
}


def _style(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.tick_params(colors=_INK)


def plot_pck(record: dict[str, Any], path: Path) -> None:
    """PCK@0.1 against the number of labelled photos, with the lowest and highest draw."""
    figure = Figure(figsize=(8, 3.8), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(_PANELS), sharey=True)
    for axes, (title, lines) in zip(panels, _PANELS.items(), strict=True):
        _style(axes)
        for step, (label, colour) in lines.items():
            rows = sorted((row for row in record["pck"] if row["step"] == step), key=lambda row: row["references"])
            counts, pck = [row["references"] for row in rows], np.array([row["pck"] for row in rows])
            reach = [pck - [min(row["draws"]) for row in rows], [max(row["draws"]) for row in rows] - pck]
            axes.errorbar(counts, pck, reach, color=colour, marker="o", elinewidth=1, capsize=3, label=label)
        axes.xaxis.set_major_locator(FixedLocator(COUNTS))
        axes.set_title(title, fontsize=10, color=_INK)
        axes.set_xlabel("labelled photos")
        axes.legend(frameon=False, loc="lower right")
    panels[0].set_ylabel("PCK@0.1 (%)")
    save_figure(figure, path)


def plot_reliability(record: dict[str, Any], path: Path) -> None:
    """Share of right points against the probability that was given, for categories that took no part in the fit."""
    figure = Figure(figsize=(4.8, 4.4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    _style(axes)
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
