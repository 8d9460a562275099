"""Matching images that are on the GPU already: results stay there and nothing is copied.

Engines wait for nothing; an ONNX file on ONNX Runtime's CUDA provider is done when the call returns. The images are
model inputs, as :func:`cats.runtime.preprocess` makes them: float32 (B, 3, S, S), normalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cats.core.errors import BackendError, InputError
from cats.runtime.backends.base import Backend
from cats.runtime.interface import CONFIDENCE, FLOW

if TYPE_CHECKING:
    from cats.runtime.backends.cuda import DeviceArray

_ON_GPU = (2, 13)  # DLPack's device types: CUDA, and CUDA managed memory


@dataclass(frozen=True)
class DeviceMatch:
    """Flow and confidence on the GPU, computed in the order of the stream that was given.

    ``torch.from_dlpack`` and ``cupy.from_dlpack`` take the arrays without a copy and in the right order.

    Attributes:
        flow: float32 (B, 2, G, G) in cells, a -> b.
        confidence: float32 (B, G, G) in 0..1. Values that are not numbers (float16 that overflows) are not looked for.
        backward_flow: of b -> a, where it was asked for.
    """

    flow: DeviceArray
    confidence: DeviceArray
    backward_flow: DeviceArray | None = None

    def flow_on_host(self) -> NDArray[np.float32]:
        """The flow as a numpy array; waits for it."""
        return self.flow.to_host().astype(np.float32, copy=False)

    def confidence_on_host(self) -> NDArray[np.float32]:
        """The confidence as a numpy array; waits for it."""
        return self.confidence.to_host().astype(np.float32, copy=False)


def is_device_array(value: object) -> bool:
    """Whether a value is an array on an NVIDIA GPU, by DLPack or the CUDA array interface."""
    device = getattr(value, "__dlpack_device__", None)
    if device is not None:
        return int(device()[0]) in _ON_GPU
    return hasattr(value, "__cuda_array_interface__")


def match_on_device(
    backend: Backend, a: Any, b: Any, *, forward_backward: bool = False, stream: Any = None
) -> DeviceMatch:
    """Put one run of the model into a stream, or run it (ONNX files).

    Args:
        a, b: model inputs on the GPU, see this module; each contiguous, and unchanged until the stream has passed.
        forward_backward: also match b -> a; a second run.
        stream: the caller's, see :meth:`cats.runtime.backends.cuda.CudaContext.stream_of`; None takes the backend's.

    Raises:
        InputError: an array that is not on the GPU, or of another dtype or shape than the model takes.
        BackendError: the backend has no device memory.
    """
    for name, array in (("a", a), ("b", b)):
        if not is_device_array(array):
            raise InputError(
                f"image {name} ({type(array).__name__}) is not on a GPU: a stream, or another image that is, asks for "
                "both as float32 (B, 3, S, S) there"
            )
    run = getattr(backend, "run_device", None)
    if run is None:
        raise BackendError(
            f"{backend.path}: {backend.name} takes no arrays on a GPU: give images on the host, or use onnxruntime "
            f"with provider 'cuda', or an engine (cats-build {backend.path.with_suffix('.onnx').name})"
        )
    outputs = run({"image_a": a, "image_b": b}, stream=stream)
    backward = run({"image_a": b, "image_b": a}, stream=stream)[FLOW] if forward_backward else None
    return DeviceMatch(outputs[FLOW], outputs[CONFIDENCE], backward)


def wants_device(pairs: Sequence[tuple[Any, Any]], stream: Any) -> bool:
    """Whether pairs are to be matched on the GPU: a stream is given, or any image is there."""
    return stream is not None or any(is_device_array(image) for pair in pairs for image in pair)
