"""Work done by threads ahead of the one who consumes it."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def map_ahead(
    work: Callable[[_Item], _Result], items: Iterable[_Item], workers: int, window: int | None = None
) -> Iterator[_Result]:
    """``map(work, items)`` in order, with up to ``window`` items worked on by threads ahead of the consumer.

    Args:
        workers: threads.
        window: items taken but not yet consumed, which bounds the memory; None is twice the workers.
    """
    source = iter(items)
    ahead = 2 * workers if window is None else window
    with ThreadPoolExecutor(workers, thread_name_prefix="cats-ahead") as pool:
        waiting: deque[Future[_Result]] = deque()
        try:
            while True:
                waiting.extend(pool.submit(work, item) for item in itertools.islice(source, ahead - len(waiting)))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
