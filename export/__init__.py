"""Export of CATs models to ONNX: deployment graph, writing, parity verification. :func:`export_onnx` does it all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cats.export.export import ExportReport, export_onnx

__all__ = ["ExportReport", "export_onnx"]


def __getattr__(name: str) -> Any:
    # On demand, because cats.export.fp16.assign must import without torch.
    if name in __all__:
        import importlib

        return getattr(importlib.import_module("cats.export.export"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
