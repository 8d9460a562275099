"""ONNX Runtime as the whole toolkit uses it: its import, its settings, and :class:`OrtSession` on the CPU."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cats.core.errors import ModelFileError, require
from cats.runtime.backends.base import Array

CPU = "CPUExecutionProvider"


def import_onnxruntime(extra: str = "cpu", purpose: str = "run ONNX files") -> Any:
    """The package, without its telemetry unless ``ORT_DISABLE_TELEMETRY`` is set already.

    Since 1.29 its import starts a thread that reports to its makers; a process that is forked afterwards never ends,
    for it waits for that thread. The variable must be set before the package is first imported.

    Raises:
        BackendError: not installed; ``extra`` and ``purpose`` as of :func:`cats.core.errors.require`.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return require("onnxruntime", extra=extra, purpose=purpose)


def session_options(ort: Any, threads: int | None = None, *, keep_memory: bool = True) -> Any:
    """Settings of every session: failures are raised, so that the log would only repeat them.

    Args:
        threads: CPU threads of one run; None leaves one per physical core, each pinned to it.
        keep_memory: between steps and runs, for speed; without, a step's memory goes back when it is done.
    """
    options = ort.SessionOptions()
    options.enable_cpu_mem_arena = options.enable_mem_pattern = keep_memory
    options.log_severity_level = 4
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def first_line(error: Exception, path: Path | None = None) -> str:
    """The useful part of an ONNX Runtime message; of ``path``, which may be long and hold any word, the name alone."""
    text = str(error) if path is None else str(error).replace(str(path), path.name)
    text = text.strip().split("\n")[0]
    return text.rpartition("[ONNXRuntimeError] : ")[2][:400] or type(error).__name__


class OrtSession:
    """A model on the CPU: named arrays in, named arrays out. It may be used from several threads at once.

    Args:
        model: ONNX file, or the content of one (2 GB at most).
        threads: see :func:`session_options`.
        disabled_optimizers: names of rewrites of ONNX Runtime that are left out.
        keep_memory: see :func:`session_options`.
        in_order: run nodes in the file's order, as far as their inputs are there. ONNX Runtime's own order begins with
            all that the first output needs, and holds until the end what only others need.
        settings: further ones of ONNX Runtime by its names for them, such as ``session.disable_quant_qdq``.
        extra, purpose: for the message where ONNX Runtime is not installed.

    Attributes:
        outputs: names of what a run gives.

    Raises:
        ModelFileError: ONNX Runtime does not load it.
        BackendError: ONNX Runtime is not installed.
    """

    def __init__(
        self,
        model: str | Path | bytes,
        *,
        threads: int | None = None,
        disabled_optimizers: Sequence[str] = (),
        keep_memory: bool = True,
        in_order: bool = False,
        settings: Mapping[str, str] | None = None,
        extra: str = "cpu",
        purpose: str = "run ONNX files",
    ) -> None:
        ort = import_onnxruntime(extra, purpose)
        options = session_options(ort, threads, keep_memory=keep_memory)
        if in_order:
            options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        for setting, value in (settings or {}).items():
            options.add_session_config_entry(setting, value)
        content = model if isinstance(model, bytes) else os.fspath(model)
        try:
            self._session = ort.InferenceSession(
                content,
                options,
                providers=[CPU],
                disabled_optimizers=list(disabled_optimizers),
            )
        except Exception as error:  # ONNX Runtime's exceptions have no base class of their own
            name = "the model" if isinstance(model, bytes) else model
            raise ModelFileError(f"onnxruntime cannot load {name}: {first_line(error)}") from error
        self.outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Any]:
        """Run once: outputs by name, float32 unless the model has other types.

        Raises:
            ModelFileError: the graph fails on these inputs.
        """
        try:
            found = self._session.run(None, dict(feeds))
        except Exception as error:  # as above
            raise ModelFileError(f"onnxruntime cannot run the model: {first_line(error)}") from error
        return dict(zip(self.outputs, found, strict=True))
