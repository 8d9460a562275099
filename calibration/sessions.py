"""ONNX models in memory in ONNX Runtime on the CPU: named arrays in, named arrays out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from cats.calibration.inputs import pair_feeds
from cats.core.errors import ModelFileError, require
from cats.core.images import ImageSource
from cats.core.metadata import Preprocessing
from cats.core.protocols import OneByOne, PairFlow


class Session:
    """A loaded model.

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
        ort = require("onnxruntime", extra="calibrate", purpose="run the model while it is calibrated")
        options = ort.SessionOptions()
        options.log_severity_level = 4
        if threads is not None:
            options.intra_op_num_threads = threads
        if outputs is not None:
            model = _with_outputs(model, outputs)
        try:
            self._session = ort.InferenceSession(
                model.SerializeToString(),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=_disabled(model),
            )
        except Exception as error:  # ONNX Runtime's exceptions have no base class of their own
            raise ModelFileError(f"onnxruntime cannot load the model: {str(error).splitlines()[0]}") from error
        self.outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, feeds: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
        """Run once."""
        return dict(zip(self.outputs, self._session.run(None, dict(feeds)), strict=True))


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

    def __init__(self, session: Session, preprocessing: Preprocessing, batch: int | None) -> None:
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
