"""Matching for many callers at once: a bounded queue, micro-batches, and threads that run the model.

:class:`Service` knows nothing of HTTP: ``cats serve`` puts it behind a port, ``examples/ray_serve.py`` into replicas.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from cats.assets import asset
from cats.core.errors import BackendError, CatsError, InputError
from cats.core.images import ImageSource, read_image
from cats.runtime.matcher import Matcher
from cats.runtime.result import Match


class BusyError(CatsError):
    """The queue is full, or the service is stopping.

    Attributes:
        retry_after: seconds after which it is worth trying again.
    """

    def __init__(self, message: str, retry_after: int = 1):
        super().__init__(message)
        self.retry_after = retry_after


@dataclass
class _Job:
    """One thing to do. A pair may run in one batch with others that agree in ``forward_backward``."""

    future: Future[Any]
    pair: tuple[ImageSource, ImageSource] | None = None
    forward_backward: bool = False
    work: Callable[[], Any] | None = None
    queued: float = field(default_factory=time.perf_counter)


class Service:
    """A matcher behind a bounded queue.

    Args:
        matcher: may be used from several threads at once, as :class:`cats.runtime.matcher.Matcher` may. It stays the
            caller's, who closes it after :meth:`close`.
        streams: threads, each of which reads photos and runs the model.
        max_batch: pairs of one run of the model.
        max_delay_ms: how long a pair waits for others to share its run, where ``max_batch`` allows some.
        max_queue: jobs that wait; further ones are refused.
        on_batch: called with the number of pairs and the seconds of each run.

    Raises:
        InputError: a number is out of range.
    """

    def __init__(
        self,
        matcher: Matcher,
        *,
        streams: int = 1,
        max_batch: int = 1,
        max_delay_ms: float = 2.0,
        max_queue: int = 64,
        on_batch: Callable[[int, float], None] | None = None,
    ) -> None:
        if streams < 1 or max_batch < 1 or max_queue < 1 or not 0 <= max_delay_ms < math.inf:
            raise InputError("streams, max_batch and max_queue must be at least 1, max_delay_ms at least 0")
        self.matcher = matcher
        self.streams, self.max_batch, self.max_queue = streams, max_batch, max_queue
        self._delay = max_delay_ms / 1000
        self._on_batch = on_batch or (lambda pairs, seconds: None)
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._seconds = 0.5  # of a job, a running mean
        self._threads = [threading.Thread(target=self._work, name=f"cats-stream-{n}") for n in range(streams)]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Jobs that wait."""
        return len(self._jobs)

    def match(self, a: ImageSource, b: ImageSource, *, forward_backward: bool = False) -> Future[Match]:
        """Queue a pair; the future gives the match, or the :class:`CatsError` of this pair alone.

        Raises:
            BusyError: the queue is full, or the service is closed.
        """
        return self._put(_Job(Future(), (a, b), forward_backward))

    def call(self, work: Callable[[], Any]) -> Future[Any]:
        """Queue anything else that uses the model; raises as :meth:`match`."""
        return self._put(_Job(Future(), work=work))

    def warm_up(self) -> None:
        """Match a shipped pair in every stream, in every batch size that doubling reaches, so that no caller waits for
        what a first run does.

        Raises:
            BackendError: the model does not run here.
        """
        pair = (asset("astronaut.jpg"), asset("grace_hopper.jpg"))
        started = threading.Barrier(self.streams)

        def run() -> None:
            with contextlib.suppress(threading.BrokenBarrierError):
                started.wait(60)  # so that each stream takes one
            size = 1
            while size <= self.max_batch:
                self.matcher.match_batch([pair] * size)
                size *= 2

        for future in [self.call(run) for _ in range(self.streams)]:
            future.result()

    def close(self) -> None:
        """Refuse new jobs, finish those that wait, and end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _put(self, job: _Job) -> Future[Any]:
        with self._changed:
            if self._closed:
                raise BusyError("the server is stopping", retry_after=5)
            if len(self._jobs) >= self.max_queue:  # those whose callers gave up make place
                self._jobs = deque(waiting for waiting in self._jobs if not waiting.future.cancelled())
            if len(self._jobs) >= self.max_queue:
                seconds = math.ceil(len(self._jobs) * self._seconds / self.streams)
                raise BusyError(
                    f"{len(self._jobs)} requests wait already; try again in {max(seconds, 1)} s", max(seconds, 1)
                )
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def _work(self) -> None:
        while jobs := self._take():
            running = [job for job in jobs if job.future.set_running_or_notify_cancel()]
            if not running:
                continue
            start = time.perf_counter()
            if running[0].work is not None:
                _settle(running[0], running[0].work)
            else:
                self._match(running)
                self._on_batch(len(running), time.perf_counter() - start)
            for job in running:
                job.pair = job.work = None  # the caller may keep the future
            self._seconds += 0.1 * ((time.perf_counter() - start) / len(running) - self._seconds)
            del jobs, running, job  # while the next one is awaited

    def _take(self) -> list[_Job]:
        """The next job, or several pairs for one run; none once the service is closed and all is done."""
        with self._changed:
            while not self._jobs:
                if self._closed:
                    return []
                self._changed.wait()
            jobs = [self._jobs.popleft()]
            first = jobs[0]
            if first.pair is None:
                return jobs
            until = first.queued + self._delay
            while len(jobs) < self.max_batch:
                fits = self._jobs and self._jobs[0].pair is not None
                if fits and self._jobs[0].forward_backward == first.forward_backward:
                    jobs.append(self._jobs.popleft())
                elif self._jobs or self._closed or not self._changed.wait(max(until - time.perf_counter(), 0)):
                    break
            return jobs

    def _match(self, jobs: list[_Job]) -> None:
        """Match the pairs that can be read in one run; each future gets its own match or error."""
        read: list[tuple[_Job, tuple[Any, Any], float]] = []
        for job in jobs:
            assert job.pair is not None
            start = time.perf_counter()
            try:
                images = tuple(read_image(image, max_pixels=self.matcher.max_pixels) for image in job.pair)
            except Exception as error:
                job.future.set_exception(bare(error))
            else:
                read.append((job, (images[0], images[1]), (time.perf_counter() - start) * 1000))
        if not read:
            return
        try:
            matches = self.matcher.match_batch([pair for _, pair, _ in read], forward_backward=jobs[0].forward_backward)
        except Exception as error:
            for job, _, _ in read:
                job.future.set_exception(bare(error))
            return
        for (job, _, read_ms), match in zip(read, matches, strict=True):
            match.times["read"] = read_ms
            match.times["queue"] = max((time.perf_counter() - job.queued) * 1000 - sum(match.times.values()), 0.0)
            job.future.set_result(match)


def _settle(job: _Job, work: Callable[[], Any]) -> None:
    try:
        job.future.set_result(work())
    except Exception as error:
        job.future.set_exception(bare(error))


def bare(error: Exception) -> Exception:
    """A :class:`CatsError` without the frames that it came through: with its future they make a ring that keeps photos
    in memory until the next collection. Faults keep theirs, for the log."""
    if isinstance(error, CatsError):
        error.__cause__ = error.__context__ = None
        return error.with_traceback(None)
    return error


def check_batch(matcher: Matcher, max_batch: int) -> None:
    """Raise :class:`BackendError` for a batch that the model cannot run at once."""
    limit = matcher.backend.max_batch or matcher.backend.inputs[0].shape[0]
    if limit is not None and max_batch > limit:
        raise BackendError(f"{matcher.path} runs at most {limit} pairs at once: --max-batch {limit}")
