"""ONNX models in memory in ONNX Runtime on the CPU: named arrays in, named arrays out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

import onnx

from cats.core.errors import ModelFileError
from cats.core.images import ImageSource
from cats.core.metadata import Preprocessing
from cats.core.protocols import OneByOne, PairFlow
from cats.data.photo_pairs import pair_feeds
from cats.export.fp16.emulate import computes_in_half, emulate_fp16
from cats.runtime.backends.ort_session import OrtSession

_EXACT: ContextVar[bool] = ContextVar("exact sums", default=False)


@contextlib.contextmanager
def exact_sums(wanted: bool = True) -> Iterator[None]:
    """Sums of 8-bit products as CPUs with VNNI compute them, in every :class:`ProbeSession` that is opened meanwhile.

    Q and DQ are executed as they stand and products in float32, which is exact enough and slow. Without, x86 CPUs that
    have AVX2 but no VNNI add two products in 16 bits, where they saturate.
    """
    token = _EXACT.set(wanted)
    try:
        yield
    finally:
        _EXACT.reset(token)


def sums_are_exact() -> bool:
    """Whether :func:`exact_sums` holds."""
    return _EXACT.get()


class ProbeSession(OrtSession):
    """A loaded model that also gives values from inside its graph; values in float16 are rounded, and overflow, as on a
    GPU.

    Args:
        model: 2 GB at most.
        outputs: values of the graph to return instead of the graph's outputs.
        threads: CPU threads; None takes one per core.

    Raises:
        ModelFileError: ONNX Runtime does not load it.
    """

    def __init__(
        self, model: onnx.ModelProto, *, outputs: Sequence[str] | None = None, threads: int | None = None
    ) -> None:
        if computes_in_half(model):
            model = emulate_fp16(model)[0]
        if outputs is not None:
            model = _with_outputs(model, outputs)
        super().__init__(
            model.SerializeToString(),
            threads=threads,
            disabled_optimizers=_disabled(model),
            settings={"session.disable_quant_qdq": "1"} if sums_are_exact() else None,
            extra="calibrate",
            purpose="run the model while it is calibrated",
        )


def _disabled(model: onnx.ModelProto) -> list[str]:
    """Rewrites of ONNX Runtime that fail on float8, which it computes in float32 on a CPU."""
    float8 = any(item.data_type == onnx.TensorProto.FLOAT8E4M3FN for item in model.graph.initializer)
    return ["ClipQuantRewrite", "ReluQuantRewrite", "ClipQuantFusion", "ReluQuantFusion"] if float8 else []


def _with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(model)
    known = {value.name: value for value in (*model.graph.value_info, *model.graph.output, *model.graph.input)}
    del result.graph.output[:]
    result.graph.output.extend(known.get(name, onnx.ValueInfoProto(name=name)) for name in names)
    return result


class SessionMatcher(OneByOne):
    """A loaded pair model as a matcher for :func:`~.evaluate.evaluate`; ``batch`` as the model has it fixed."""

    def __init__(self, session: ProbeSession, preprocessing: Preprocessing, batch: int | None) -> None:
        self.session, self.preprocessing, self.batch = session, preprocessing, batch

    def match(self, a: ImageSource, b: ImageSource) -> PairFlow:
        """Flow (2, G, G) in cells, a -> b."""
        return PairFlow(self.session(pair_feeds(a, b, self.preprocessing, self.batch))["flow"][0])


def fixed_batch(model: onnx.ModelProto) -> int | None:
    """Batch size of a model whose batch is not free; None where it is.

    Raises:
        ModelFileError: the model has no inputs.
    """
    if not model.graph.input:
        raise ModelFileError("the model has no inputs")
    return model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or None
