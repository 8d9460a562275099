"""Running a backend on any number of items, in batches that its file allows."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from cats.core.errors import BackendError, ModelFileError
from cats.runtime.backends.base import Array, Backend

_T = TypeVar("_T")


def fixed_batch(backend: Backend) -> int | None:
    """Batch size of a file that takes no other; None where it is free."""
    return backend.inputs[0].shape[0]


def run_batches(
    backend: Backend, items: Sequence[dict[str, Array]], *, largest: int | None = None
) -> list[dict[str, Array]]:
    """Run items without batch axis in batches as large as the file allows.

    Args:
        largest: items of one run, which a fixed batch repeats; None takes what file and backend allow.

    Returns:
        The outputs of each item without batch axis, in order.

    Raises:
        ModelFileError: an output has another batch size than the inputs.
        BackendError: the device failed, or an output holds values that are not numbers.
    """
    fixed = fixed_batch(backend)
    step = largest or fixed or backend.max_batch or len(items) or 1
    dtypes = {spec.name: spec.dtype for spec in backend.inputs}
    results: list[dict[str, Array]] = []
    for first in range(0, len(items), step):
        part = list(items[first : first + step])
        wanted = len(part)
        part += [part[-1]] * (max(fixed or 1, backend.min_batch) - wanted)  # the file takes no less
        stacked = {name: np.stack([item[name] for item in part]).astype(dtypes[name], copy=False) for name in part[0]}
        outputs = backend.run(stacked)
        for name, value in outputs.items():
            if len(value) != len(part):
                raise ModelFileError(
                    f"{backend.path} gave {name} {value.shape} for a batch of {len(part)}: export the model again"
                )
            if not np.isfinite(value).all():
                raise BackendError(
                    f"{backend.path} gave values that are not numbers ({backend.metadata.precision}, {backend.name}): "
                    "half precision overflows in this model; export it in fp32"
                )
        results += [{name: value[index] for name, value in outputs.items()} for index in range(wanted)]
    return results


def chunks(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """Lists of ``size`` items, the last one shorter."""
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk
