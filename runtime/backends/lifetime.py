"""While a loaded model may be used: until it is closed, and in the process that loaded it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from cats.core.errors import BackendError


class Lifetime:
    """Counts the uses that are under way in all threads, so that nothing is released beneath them.

    A process that was forked after loading has the model's memory and none of its threads: a run there would wait for
    ever, so it is refused.

    Args:
        name: of the model, for messages.
    """

    def __init__(self, name: str) -> None:
        self._name, self._process = name, os.getpid()
        self._uses, self._ended = 0, False
        self._changed = threading.Condition()

    def check(self) -> None:
        """Raise :class:`BackendError` where the model may not be used any more, or not here."""
        if os.getpid() != self._process:  # before the lock, which another thread may have held at the fork
            raise BackendError(
                f"{self._name} was loaded before this process was forked, without its threads: load it in each worker, "
                "or start workers with multiprocessing's 'spawn'"
            )
        if self._ended:
            raise BackendError(f"{self._name} is closed: open the file again")

    @contextmanager
    def use(self) -> Iterator[None]:
        """Keep the model for the time of the block; raises as :meth:`check`."""
        self.check()
        with self._changed:
            self.check()
            self._uses += 1
        try:
            yield
        finally:
            with self._changed:
                self._uses -= 1
                self._changed.notify_all()

    def end(self) -> bool:
        """Let no further use begin and wait for those under way.

        Returns:
            Whether the caller is to release the model: once, and only in the process that loaded it.
        """
        if os.getpid() != self._process:
            return False
        with self._changed:
            if self._ended:
                return False
            self._ended = True
            self._changed.wait_for(lambda: self._uses == 0)
            return True
