"""The record of the study of ablations as tables and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cats.benchmarks.studies.ablation_rows import ROWS
from cats.evaluation.figures import save_figure

Runs = list[dict[str, Any]]
NAMES = {
    "categories": "Photos by category (probabilistic warp consistency)",
    "warps": "Known warps (end-point error)",
}
# PF-WILLOW car and duck, the same pairs: docs/training.md
FLOORS = {"points left where they are": 22.6, "zero-started, untrained": 58.5}


def table(document: dict[str, Any]) -> str:
    """The record as Markdown: of each objective every row at the length that most rows have, then all lengths."""
    runs: Runs = document["runs"]
    machines = sorted({f"{run['date']}, {run['machine']}" for run in runs if "machine" in run})
    lines = ["# Ablations and COTR in one setting", "", document["setting"], ""]
    lines += [f"Measured: {'; '.join(machines)}."] if machines else []
    for objective, title in NAMES.items():
        own = [run for run in runs if run["objective"] == objective]
        if own:
            lines += ["", f"## {title}", "", *_rows(own), *_lengths(own)]
    if document.get("start"):
        lines += ["", "## The random start of full", "", *_start(document["start"])]
    if document.get("costs"):
        lines += ["", "## Costs of one pair", "", *_costs(document["costs"])]
    return "\n".join([*lines, ""])


def base_length(runs: Runs) -> int:
    """The number of updates at which most rows were trained, the larger where two are alike."""
    rows: dict[int, set[str]] = {}
    for run in runs:
        rows.setdefault(run["steps"], set()).add(run["row"])
    return max(rows, key=lambda steps: (len(rows[steps]), steps))


def pck_of(runs: Runs, row: str, steps: int, alpha: str = "0.1") -> dict[int, float]:
    """PCK by seed."""
    return {run["seed"]: run["pck"][alpha] for run in runs if run["row"] == row and run["steps"] == steps}


def _spread(values: list[float], digits: int = 1) -> str:
    if not values:
        return ""
    low, high, mean = (f"{f(values):.{digits}f}" for f in (min, max, np.mean))
    return f"{mean} ({low} to {high})" if len(values) > 1 else mean


def _rows(runs: Runs) -> list[str]:
    """One row of the study a line, at one length."""
    most = max(run["pairs"] for run in runs)
    own = [run for run in runs if run["pairs"] == most]
    steps = base_length(own)
    own = [run for run in own if run["steps"] == steps]
    sizes = sorted({(run["batch"], run["pool"], run["pairs"]) for run in own})
    text = " or ".join(f"{batch} of a pool of {pool}, judged on {pairs} pairs" for batch, pool, pairs in sizes)
    lines = [
        f"{steps} updates of {text}. Mean (range) over the seeds; differences are of runs with the same seed.",
        f"Losses: on items of the pool, on others of its categories, on categories that are held out{_unit(own)}.",
        "",
        "| row | seeds | PCK@0.1 | against full | PCK@0.05 | loss: pool | same categories | held out | the paper |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    full = pck_of(own, "full", steps)
    for row in ROWS:
        pck = pck_of(own, row, steps)
        if not pck:
            continue
        differences = [pck[seed] - full[seed] for seed in pck if seed in full] if row != "full" else []
        losses = [run["loss"] for run in own if run["row"] == row and "loss" in run]
        means = [f"{np.mean([loss[kind] for loss in losses]):.2f}" if losses else "" for kind in _KINDS]
        fine = _spread(list(pck_of(own, row, steps, "0.05").values()))
        cells = [row, len(pck), _spread(list(pck.values())), _spread(differences), fine, *means, ROWS[row].paper]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


_KINDS = ("pool", "seen", "unseen")


def _unit(runs: Runs) -> str:
    return " (pixels at 256 x 256)" if runs[0]["objective"] == "warps" else ""


def _lengths(runs: Runs) -> list[str]:
    """PCK@0.1 of the rows that were trained for several lengths, or judged on other pairs than the rest."""
    lines: list[str] = []
    for pairs in sorted({run["pairs"] for run in runs}, reverse=True):
        own = [run for run in runs if run["pairs"] == pairs]
        if len({run["steps"] for run in own}) > 1 or lines:
            lines += ["", f"PCK@0.1 by the number of updates, on {pairs} pairs:", "", *_by_length(own)]
    return lines


def _by_length(runs: Runs) -> list[str]:
    lengths = sorted({run["steps"] for run in runs})
    lines = []
    lines += [f"| row | {' | '.join(map(str, lengths))} |", f"|---|{'---:|' * len(lengths)}"]
    for row in ROWS:
        cells = [_spread(list(pck_of(runs, row, steps).values())) for steps in lengths]
        if sum(map(bool, cells)) > (len(lengths) > 1):
            lines.append(f"| {row} | {' | '.join(cells)} |")
    return lines


def _start(start: dict[str, Any]) -> list[str]:
    lines = [
        f"Of {start['pairs']} pairs, seed {start['seed']}. Share: of a token's variance after the first LayerNorm.",
        "",
        "| level | correlation, deviation | appearance, deviation | ratio of norms in a token | share of correlation |",
        "|---|---:|---:|---:|---:|",
    ]
    for number, level in enumerate(start["levels"], start=1):
        cells = [f"{level[name]:.2f}" for name in ("correlation", "appearance")]
        lines.append(f"| {number} | {' | '.join(cells)} | {level['ratio']:.0f} | {level['share']:.1%} |")
    return [*lines, "", f"To the correlation, the untrained aggregator adds noise of deviation {start['added']:.2f}."]


def _costs(costs: dict[str, Any]) -> list[str]:
    timed = any("ratio" in cost for cost in costs["rows"].values())
    lines = [f"Timed on {costs['date']}, {costs['machine']}.", ""] if timed else []
    lines += [f"| row | GFLOP | learnt parameters |{' time of a single level |' if timed else ''}"]
    lines += [f"|---|---:|---:|{'---:|' if timed else ''}"]
    for row, cost in costs["rows"].items():
        cells = [row, f"{cost['GFLOP']:.2f}", f"{cost['parameters'] / 1e6:.2f} M"]
        if timed:
            ratio = cost["ratio"]
            cells.append(f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def draw(document: dict[str, Any], path: Path) -> None:
    """PCK@0.1 of every run as a dot, one panel an objective, darker for longer training."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    objectives = [name for name in NAMES if any(run["objective"] == name for run in document["runs"])]
    counts = [len({run["row"] for run in document["runs"] if run["objective"] == name}) for name in objectives]
    height = 0.34 * sum(counts) + 0.95 * len(counts) + 0.3
    figure = Figure(figsize=(6.4, height), dpi=200, layout="constrained")
    panels = figure.subplots(len(objectives), 1, sharex=True, squeeze=False, height_ratios=counts)[:, 0]
    every = sorted({run["steps"] for run in document["runs"]})
    shades = dict(zip(every, colormaps["viridis_r"](np.linspace(0.15, 0.95, len(every))), strict=True))
    for axis, objective in zip(panels, objectives, strict=True):
        runs = [run for run in document["runs"] if run["objective"] == objective]
        runs = [run for run in runs if run["pairs"] == max(other["pairs"] for other in runs)]
        rows = [row for row in ROWS if any(run["row"] == row for run in runs)][::-1]
        lengths = sorted({run["steps"] for run in runs})
        for shift, (steps, shade) in enumerate((steps, shades[steps]) for steps in lengths):
            place = 0.22 * ((len(lengths) - 1) / 2 - shift)
            for y, row in enumerate(rows):
                pck = list(pck_of(runs, row, steps).values())
                axis.plot(pck, [y + place] * len(pck), "o", color=shade, markersize=3.5)
                if pck:
                    axis.plot([np.mean(pck)] * 2, [y + place - 0.1, y + place + 0.1], color=shade, linewidth=1.4)
            axis.plot([], [], "o", color=shade, markersize=3.5, label=f"{steps} updates")
        for name, value in FLOORS.items():
            axis.axvline(value, color="0.6", linewidth=0.8, linestyle=":")
            if axis is panels[0]:
                axis.text(value, len(rows) - 0.42, name, fontsize=6.5, color="0.4", ha="center", va="bottom")
        axis.set_yticks(range(len(rows)), rows, fontsize=8)
        axis.set_ylim(-0.6, len(rows) - 0.4)
        axis.set_title(NAMES[objective], fontsize=9, loc="left", pad=14)
        axis.tick_params(axis="x", labelsize=8)
        axis.grid(axis="y", color="0.93")
        axis.legend(fontsize=7, loc="lower right" if objective == "warps" else "best", frameon=False)
    panels[-1].set_xlabel("PCK@0.1 on PF-WILLOW, percent: a dot is a seed, a line their mean", fontsize=8)
    save_figure(figure, path)
