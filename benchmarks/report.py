"""Results of :func:`cats.benchmarks.bench.bench` as one self-contained HTML file: tables, and plots as inline SVG."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from typing import Any

STAGES = ("read", "decode", "resize", "encode", "match", "model", "post")
_INK, _ACCENT, _MUTED = "#1f2933", "#2563a8", "#9aa5b1"
_COLOURS = ("#2563a8", "#e07b39", "#3d9970", "#8e5ea2", "#c0392b", "#7f8c8d", "#d4ac0d")
_STYLE = """
body { font: 15px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; color: #1f2933; max-width: 1160px; margin: 2.5rem auto;
  padding: 0 1.25rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p.sub, figcaption, .note { color: #616e7c; } figure { margin: 0; } svg { max-width: 100%; height: auto; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .38rem .5rem; text-align: right; border-bottom: 1px solid #e4e7eb; white-space: nowrap; }
th { font-weight: 600; color: #52606d; font-size: .85rem; border-bottom: 2px solid #cbd2d9; }
th:first-child, td:first-child, table.text th { text-align: left; } tr.base td { background: #f5f7fa; }
td.text { text-align: left; white-space: normal; color: #52606d; font-size: .9rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(400px, 1fr)); gap: 1.5rem; }
"""


def html_report(results: dict[str, Any]) -> str:
    """The report; it refers to no other file."""
    model, machine, cost = results["model"], results["machine"], results["roofline"]
    title = f"CATs benchmark: {model['name']}"
    peaks = f"{cost['fp32_gflops']:.0f} GFLOP/s in float32"
    if cost.get("bf16_gflops"):
        peaks += f", {cost['bf16_gflops']:.0f} in bfloat16"
    parts = [
        f"<h1>{_text(title)}</h1>",
        f"<p class='sub'>{_text(model['description'])}; {model['parameters'] / 1e6:.1f} million parameters. "
        f"{_text(machine.get('CPU', ''))}; {_count(results['threads'], 'thread')}; {_text(results['date'])}.</p>",
        _load_note(results),
        "<h2>Latency of one pair</h2>",
        f"<figure>{_latency_plot(results)}<figcaption>Medians of {results['rounds']} interleaved rounds, each in a "
        f"process of its own; bars span the {results.get('confidence', 0.95):.0%} bootstrap interval. Ratios are taken "
        f"within a round, to {_text(' and '.join(_baselines(results)))}.</figcaption></figure>",
        "<h2>Speed, memory and accuracy</h2>",
        f"<div class='scroll'>{_main_table(results)}</div>",
        "<p class='note'>Ready: from the start of a fresh process to the end of its first match. Drift: distance of "
        "the flow from PyTorch in float32, in pixels at 256 x 256, over "
        + _text(results.get("drift_on", "the verification pairs"))
        + "."
        + (f" PCK on {_text(results['data'])}, protocol corrected." if results.get("data") else "")
        + _argmax_note(results)
        + "</p>",
        "<h2>Where the time goes</h2>",
        f"<figure>{_stage_plot(results)}<figcaption>Two photos from files to transferred points.</figcaption></figure>",
        _stage_table(results),
    ]
    curves = [_batch_plot(results), _many_plot(results)]
    if any(curves):
        parts += ["<h2>More than one pair</h2>", f"<div class='grid'>{''.join(curves)}</div>"]
    parts += [
        "<h2>Roofline</h2>",
        f"<p>One pair takes {cost['gflop']:.1f} GFLOP in our graph, {cost['weights_mb']:.0f} MB of weights, and "
        f"{cost['unfused_mb']:.0f} MB between operators if nothing were fused. Measured here: {peaks}, "
        f"{cost['copy_gbs']:.0f} GB/s of copying. At its peak in float32 the machine would take "
        f"{1000 * cost['gflop'] / cost['fp32_gflops']:.0f} ms; the table gives the share that each reaches.</p>",
    ]
    if results["missing"]:
        rows = [[item["name"], item["reason"]] for item in results["missing"]]
        parts += ["<h2>Not run here</h2>", _table(["", "reason"], rows, text=True)]
    facts = [[key, value] for key, value in machine.items()]
    facts.append(["packages", ", ".join(f"{name} {version}" for name, version in results.get("packages", {}).items())])
    facts += [[row["name"], row["description"]] for row in results["contestants"]]
    parts += ["<h2>Setting</h2>", _table(["", ""], facts, text=True)]
    return (
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>{_text(title)}</title>"
        f"<meta name='viewport' content='width=device-width'><style>{_STYLE}</style></head><body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _load_note(results: dict[str, Any]) -> str:
    """What other work ran, where that is known; in bold where it is in the figures."""
    load = results.get("load")
    if load is None:
        return ""
    text = f"Load average at the start: {load['average']:.2f} on {load['cores']} cores."
    return f"<p><b>The machine was busy. {text}</b></p>" if load["busy"] else f"<p class='note'>{text}</p>"


def _main_table(results: dict[str, Any]) -> str:
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
    return _table(columns, rows, base=_baselines(results))


def _baselines(results: dict[str, Any]) -> list[str]:
    """Of each device, the contestant that ratios refer to; older results have one."""
    return list(dict.fromkeys(row.get("baseline", results["baseline"]) for row in results["contestants"]))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _argmax_note(results: dict[str, Any]) -> str:
    if not any(row["drift"].get("argmax") for row in results["contestants"]):
        return ""
    return " These weights are neither trained nor zero-started: ties flip, and the drift says little."


def _table(columns: list[str], rows: list[list[Any]], *, text: bool = False, base: Sequence[str] = ()) -> str:
    head = "".join(f"<th>{_text(column)}</th>" for column in columns) if any(columns) else ""
    body = []
    for row in rows:
        cells = [f"<td>{_text(row[0])}</td>"]
        cells += [f"<td{' class=text' if text else ''}>{_text(cell)}</td>" for cell in row[1:]]
        body.append(f"<tr{' class=base' if row[0] in base else ''}>{''.join(cells)}</tr>")
    top = f"<thead><tr>{head}</tr></thead>" if head else ""
    return f"<table{' class=text' if text else ''}>{top}<tbody>{''.join(body)}</tbody></table>"


def _text(value: Any) -> str:
    return html.escape(str(value))


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


def _stage_table(results: dict[str, Any]) -> str:
    rows = _stage_rows(results)
    stages = [stage for stage in STAGES if any(stage in laps for _, laps in rows)]
    cells = [[name, *("-" if s not in laps else f"{laps[s]:.2f}" for s in stages)] for name, laps in rows]
    return f"<div class='scroll'>{_table(['milliseconds', *stages], cells)}</div>"


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


def _curve(series: dict[str, dict[str, float]], label_x: str, label_y: str, caption: str) -> str:
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
    return f"<figure>{_svg(figure)}<figcaption>{_text(caption)}</figcaption></figure>"


def _batch_plot(results: dict[str, Any]) -> str:
    series = results.get("batch_curve") or {}
    return _curve(series, "pairs in a batch", "ms a pair", "Cost of a pair by batch size.") if series else ""


def _many_plot(results: dict[str, Any]) -> str:
    found = results.get("one_to_many") or {}
    if not found:
        return ""
    series = {"gallery encoded beforehand": found["encoded_before"], "with its encoding": found["with_encoding"]}
    return _curve(series, "N", "share of a pair alone", "One image against N: cost of each pair, a pair alone being 1.")
