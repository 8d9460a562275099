"""cats-tiny in 8 bits in all three forms, of one set of ranges and with the same modules in float32: size, drift, PCK.

Sums of 8-bit products are computed as CPUs with VNNI do, exactly, by ONNX Runtime with every Q/DQ node executed as it
stands; without VNNI they saturate in 16 bits, which moves matches more (``--saturated`` on such a CPU).

Usage: python -m cats.benchmarks.studies.int8_forms FOLDER [--pairs N] [--saturated]
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import onnxruntime
import typer

from cats.assets import asset
from cats.benchmarks.record import RESULTS, SHARED, describe_run, write_record
from cats.calibration.calibrate import calibrate, kept_modules, load_float_model, measure_ranges
from cats.calibration.forms import FloatModel
from cats.checkpoints import load_checkpoint
from cats.core.console import execute, new_app, note
from cats.data import open_dataset
from cats.data.photo_pairs import photos_from_folder
from cats.evaluation.evaluate import evaluate
from cats.export import export_onnx
from cats.runtime import Matcher

app = new_app()


@contextlib.contextmanager
def exact_sums() -> Iterator[None]:
    """:func:`cats.calibration.sessions.exact_sums` for every session that is opened meanwhile, those of the runtime's
    matchers, which know no such setting, too."""
    original = onnxruntime.InferenceSession

    def opened(model: Any, sess_options: Any = None, *more: Any, **settings: Any) -> Any:
        sess_options = sess_options or onnxruntime.SessionOptions()
        sess_options.add_session_config_entry("session.disable_quant_qdq", "1")
        return original(model, sess_options, *more, **settings)

    with mock.patch.object(onnxruntime, "InferenceSession", opened):
        yield


@app.command()
def main(
    folder: Annotated[Path, typer.Argument(help="Where the models are written.")],
    pairs: Annotated[int, typer.Option(help="Pairs of PF-WILLOW to measure PCK on, spread evenly.", min=2)] = 100,
    threads: Annotated[int, typer.Option(help="CPU threads.", min=1)] = 1,
    saturated: Annotated[bool, typer.Option("--saturated", help="Sums as this CPU computes them.")] = False,
) -> None:
    """Quantize the three forms and compare them."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = folder / "cats-tiny.end-to-end.onnx"
    if not pixels.exists():
        checkpoint = load_checkpoint(asset("cats-tiny.pt")).model
        export_onnx(checkpoint, pixels, form="end-to-end", weights="fp16-storage", verified=False)
    photos = photos_from_folder(SHARED / "data" / "photos")
    sources = {
        "pair": load_float_model(asset("cats-tiny.onnx")),
        "split": load_float_model(asset("cats-tiny.encoder.onnx")),
        "end-to-end": load_float_model(pixels),
    }
    ranges = measure_ranges(sources["pair"], photos, threads=threads)
    chosen = open_dataset(f"willow:{SHARED / 'data' / 'PF-WILLOW'}").select(limit=pairs)
    record = describe_run("int8-forms", ("onnxruntime", "onnx", "numpy"), threads)
    record |= {"photos": len(photos), "willow_pairs": len(chosen), "exact_sums": not saturated, "forms": {}}

    def pck(path: Path) -> float:
        with contextlib.nullcontext() if saturated else exact_sums(), Matcher(path, threads=threads) as matcher:
            return round(evaluate(matcher, chosen, ("corrected",), (0.1,)).pck(0.1), 3)

    def quantized(source: FloatModel, name: str) -> Any:
        keep = kept_modules(asset("cats-tiny.int8.onnx"), source)
        return calibrate(source, ranges, folder / name, target="cpu", keep=keep, pairs=photos, threads=threads)

    record["float_pck"] = pck(sources["pair"].path)
    for form, source in sources.items():
        with contextlib.nullcontext() if saturated else exact_sums():
            report = quantized(source, f"{form}.int8.onnx")
        record["forms"][form] = {
            "megabytes": {kind: round(path.stat().st_size / 1e6, 2) for kind, path in report.files.items()},
            "float_megabytes": {k: round(f.path.stat().st_size / 1e6, 2) for k, f in source.by_kind.items()},
            "modules": {k: (m.calibration or {})["quantized_modules"] for k, m in report.described.items()},
            "kept": {k: len((m.calibration or {})["kept"]) for k, m in report.described.items()},
            "median_px": round(report.drift.median_px, 3),
            "p99_px": round(report.drift.p99_px, 3),
            "points_px": report.drift.points_px,
        }
        note(f"{form}: {record['forms'][form]}")
        record["forms"][form]["pck"] = pck(report.path)
        note(f"{form}: PCK@0.1 {record['float_pck']} -> {record['forms'][form]['pck']}")
    write_record(RESULTS / "int8-forms.json", record)


if __name__ == "__main__":
    execute(app)
