"""Float files of the small model that tests quantize, made once for the tests of calibration and of the runtime."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_once import made_once


def float_forms(factory: pytest.TempPathFactory) -> Path:
    """Folder with ``small.encoder.onnx``, ``small.matcher.onnx``, ``small.end-to-end.onnx``; its soft-argmax is wide,
    so that random weights do not exaggerate, and sums that saturate on CPUs without VNNI neither."""

    def export(folder: Path) -> None:
        from tiny_models import tiny_model

        from cats.export import export_onnx

        for form, name in (("split", "small.onnx"), ("end-to-end", "small.end-to-end.onnx")):
            export_onnx(tiny_model(temperature=0.9), folder / name, form=form, verified=False)

    return made_once(factory, "calibrated-forms", export)
