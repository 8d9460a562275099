"""Results of :func:`cats.benchmarks.bench.bench` as one self-contained HTML file: tables, and plots as inline SVG."""

from __future__ import annotations

import io
import re
from importlib import resources
from typing import Any

STAGES = ("read", "decode", "resize", "encode", "match", "model", "post")
_INK, _ACCENT, _MUTED = "#1f2933", "#2563a8", "#9aa5b1"
_COLOURS = ("#2563a8", "#e07b39", "#3d9970", "#8e5ea2", "#c0392b", "#7f8c8d", "#d4ac0d")


def html_report(results: dict[str, Any]) -> str:
    """The report; it refers to no other file."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    page = resources.files("cats.benchmarks").joinpath("templates/report.html.j2").read_text("utf-8")
    machine = results["machine"]
    facts = list(machine.items())
    facts.append(("packages", ", ".join(f"{name} {version}" for name, version in results.get("packages", {}).items())))
    facts += [(row["name"], row["description"]) for row in results["contestants"]]
    columns, rows = _main_table(results)
    stage_columns, stage_rows = _stage_table(results)
    curves = [curve for curve in (_batch_curve(results), _many_curve(results)) if curve]
    return environment.from_string(page).render(
        model=results["model"],
        machine={"CPU": "", **machine},
        cost={"bf16_gflops": None, **results["roofline"]},
        threads=results["threads"],
        date=results["date"],
        load=results.get("load"),
        rounds=results["rounds"],
        confidence=results.get("confidence", 0.95),
        latency=Markup(_latency_plot(results)),
        columns=columns,
        rows=rows,
        baselines=_baselines(results),
        drift_on=results.get("drift_on", "the verification pairs"),
        data=results.get("data"),
        argmax=any(row["drift"].get("argmax") for row in results["contestants"]),
        stages=Markup(_stage_plot(results)),
        stage_columns=stage_columns,
        stage_rows=stage_rows,
        curves=[(Markup(picture), caption) for picture, caption in curves],
        missing=[(item["name"], item["reason"]) for item in results["missing"]],
        facts=facts,
    )


def _main_table(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows."""
    columns = ["", "ms", "95 %", "ratio", "95 %", "load ms", "ready s", "peak MB", "file MB", "p99 px"]
    columns += [*(["PCK@0.1"] if results.get("data") else []), "of peak"]
    rows = []
    for row in results["contestants"]:
        ms, ratio = row["ms"], row["ratio"]
        cells = [
            row["name"],
            f"{ms['median']:.1f}",
            f"{ms['low']:.1f} - {ms['high']:.1f}",
            _number(ratio and ratio["median"], ".3f"),
            "-" if ratio is None else f"{ratio['low']:.3f} - {ratio['high']:.3f}",
            f"{row['load_ms']:.0f}",
            f"{row['ready_ms'] / 1000:.2f}",
            _number(row["peak_mb"], ".0f"),
            _number(row["file_mb"], ".1f"),
            f"{row['drift']['p99_px']:.3f}",
        ]
        if results.get("data"):
            cells.append(_number(row["pck"], ".2f"))
        share = row.get("peak_share")
        rows.append([*cells, "-" if share is None else f"{share:.0%}"])
    return columns, rows


def _baselines(results: dict[str, Any]) -> list[str]:
    """Of each device, the contestant that ratios refer to; older results have one."""
    return list(dict.fromkeys(row.get("baseline", results["baseline"]) for row in results["contestants"]))


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_MUTED)
    axes.tick_params(colors=_INK, length=0, labelsize=9)
    return figure, axes


def _svg(figure: Any) -> str:
    import matplotlib

    buffer = io.StringIO()
    # Equal results give equal bytes; paths instead of fonts, so that it looks the same everywhere.
    with matplotlib.rc_context({"svg.hashsalt": "cats"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return text[text.index("<svg") :]


def _latency_plot(results: dict[str, Any]) -> str:
    rows = results["contestants"][::-1]
    figure, axes = _figure(9.6, 0.9 + 0.42 * len(rows))
    medians = [row["ms"]["median"] for row in rows]
    below = [row["ms"]["median"] - row["ms"]["low"] for row in rows]
    above = [row["ms"]["high"] - row["ms"]["median"] for row in rows]
    colours = [_MUTED if row["name"] in _baselines(results) else _ACCENT for row in rows]
    axes.barh(range(len(rows)), medians, color=colours, height=0.62)
    axes.errorbar(medians, range(len(rows)), xerr=[below, above], fmt="none", ecolor=_INK, elinewidth=1.2, capsize=3)
    for y, row in enumerate(rows):
        label = f"{row['ms']['median']:.3g} ms"
        if row["ratio"] is not None:
            label += f"   x {row['ratio']['median']:.2f}"
        axes.text(row["ms"]["high"] + 0.012 * max(medians), y, label, va="center", fontsize=9, color=_INK)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.set_xlim(0, max(row["ms"]["high"] for row in rows) * 1.2)
    axes.set_xlabel("milliseconds", fontsize=9, color=_INK)
    return _svg(figure)


def _stage_rows(results: dict[str, Any]) -> list[tuple[str, dict[str, float]]]:
    rows = [(row["name"], row["stages_ms"]) for row in results["contestants"]]
    if results.get("stages_split"):
        rows.append(("ONNX Runtime, encoder + matcher", results["stages_split"]))
    return rows


def _stage_table(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows."""
    rows = _stage_rows(results)
    stages = [stage for stage in STAGES if any(stage in laps for _, laps in rows)]
    cells = [[name, *("-" if s not in laps else f"{laps[s]:.2f}" for s in stages)] for name, laps in rows]
    return ["milliseconds", *stages], cells


def _stage_plot(results: dict[str, Any]) -> str:
    rows = _stage_rows(results)[::-1]
    figure, axes = _figure(9.6, 1.2 + 0.42 * len(rows))
    left = [0.0] * len(rows)
    for stage, colour in zip(STAGES, _COLOURS, strict=True):
        values = [stages.get(stage, 0.0) for _, stages in rows]
        if any(values):
            axes.barh(range(len(rows)), values, left=left, color=colour, height=0.62, label=stage)
        left = [a + b for a, b in zip(left, values, strict=True)]
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set_xlabel("milliseconds", fontsize=9, color=_INK)
    axes.legend(ncols=len(STAGES), loc="lower center", bbox_to_anchor=(0.4, 1.0), frameon=False, fontsize=9)
    return _svg(figure)


def _curve(series: dict[str, dict[str, float]], label_x: str, label_y: str) -> str:
    figure, axes = _figure(5.6, 3.6)
    for (name, values), colour in zip(series.items(), _COLOURS, strict=False):
        sizes = sorted(map(int, values))
        heights = [values[str(size)] for size in sizes]
        axes.plot(range(len(sizes)), heights, "o-", color=colour, label=name)
        for x, (size, y) in enumerate(zip(sizes, heights, strict=True)):
            others = [other[str(size)] for other in series.values() if str(size) in other]
            up = 6 if y == max(others) else -12  # so that the labels of close curves do not cover each other
            axes.annotate(
                f"{y:.3g}", (x, y), (0, up), textcoords="offset points", ha="center", fontsize=8, color=colour
            )
        axes.set_xticks(range(len(sizes)), list(map(str, sizes)))
    axes.set_ylim(0, 1.18 * max(max(values.values()) for values in series.values()))
    axes.set_xlabel(label_x, fontsize=9, color=_INK)
    axes.set_ylabel(label_y, fontsize=9, color=_INK)
    axes.legend(frameon=False, fontsize=9, loc="lower left")
    return _svg(figure)


def _batch_curve(results: dict[str, Any]) -> tuple[str, str] | None:
    """A picture and what is below it."""
    series = results.get("batch_curve") or {}
    return (_curve(series, "pairs in a batch", "ms a pair"), "Cost of a pair by batch size.") if series else None


def _many_curve(results: dict[str, Any]) -> tuple[str, str] | None:
    found = results.get("one_to_many") or {}
    if not found:
        return None
    series = {"gallery encoded beforehand": found["encoded_before"], "with its encoding": found["with_encoding"]}
    picture = _curve(series, "N", "share of a pair alone")
    return picture, "One image against N: cost of each pair, a pair alone being 1."
