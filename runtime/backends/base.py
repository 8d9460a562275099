"""What every backend offers to :class:`cats.runtime.Matcher`: named tensors in, named tensors out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cats.core.metadata import Metadata
from cats.runtime.backends.lifetime import Lifetime

Array = NDArray[np.generic]


@dataclass(frozen=True)
class TensorSpec:
    """Name, numpy dtype and shape of a model input or output; ``None`` is a dynamic dimension."""

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int | None, ...]

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Whether an array's shape has as many dimensions, and the sizes that are not dynamic."""
        return len(shape) == len(self.shape) and all(
            expected in (None, size) for expected, size in zip(self.shape, shape, strict=True)
        )


class Backend(ABC):
    """One loaded model in one inference library.

    A backend is built from a file, refuses what it cannot run with a :class:`~cats.core.errors.CatsError`, never
    chooses another device or precision than the one asked for, and may be used from several threads at once. Once it is
    closed, and in a process that was forked after loading, it says so.

    Args:
        path: the model file.
    """

    name: str
    """Short name as the user gives it: ``onnxruntime``, ``tensorrt``, ``tensorrt-rtx``, ``openvino``."""

    metadata: Metadata
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    max_batch: int | None = None
    """Largest batch of one call; ``None`` means any. The matcher splits larger ones."""

    prefers_batches: bool = False
    """Whether many pairs take less time in one run than one after the other: on GPUs. On CPUs their values fall out of
    the caches and they take more."""

    min_batch: int = 1
    """Smallest batch of one call. The matcher fills smaller ones up."""

    advice: str | None = None
    """What runs this file better here, where that is known; commands say it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.lifetime = Lifetime(str(path))

    @property
    def gallery_batch(self) -> int:
        """Pairs of one run where one image is matched against many."""
        return 8 if self.prefers_batches else 1

    def run(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """Run the model once on host arrays that fit :attr:`inputs`; returns all outputs by name.

        Raises:
            BackendError: the device failed, or the backend is closed.
        """
        with self.lifetime.use():
            return self._run(feeds)

    def close(self) -> None:
        """Release device memory and handles when no run is under way; the backend cannot be used afterwards."""
        if self.lifetime.end():
            self._release()

    @abstractmethod
    def _run(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """As :meth:`run`, of a backend that is open."""

    @abstractmethod
    def _release(self) -> None:
        """Give everything back; called once, while nothing runs."""

    @abstractmethod
    def describe(self) -> str:
        """One line: library, version, device or provider, settings, threads, and why if there was a choice."""
