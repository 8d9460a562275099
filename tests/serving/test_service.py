"""The queue before the matcher: batches, limits, and errors that stay with their own caller."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from cats.core.errors import BackendError, InputError
from cats.runtime import Match
from cats.serving.service import BusyError, Service

PHOTO = np.zeros((20, 30, 3), np.uint8)


class Gate:
    """A matcher that runs when it is let to, and notes its batches."""

    max_pixels = 1_000_000

    def __init__(self) -> None:
        self.open = threading.Event()
        self.running = threading.Event()
        self.batches: list[tuple[int, bool]] = []
        self.error: Exception | None = None

    def match_batch(self, pairs: list[Any], forward_backward: bool = False) -> list[Match]:
        self.running.set()
        assert self.open.wait(60)
        self.batches.append((len(pairs), forward_backward))
        if self.error is not None:
            raise self.error
        flow, confidence = np.zeros((2, 16, 16), np.float32), np.ones((16, 16), np.float32)
        return [Match(flow, confidence, a.size, b.size) for a, b in pairs]


@pytest.fixture
def gate() -> Iterator[Gate]:
    matcher = Gate()
    yield matcher
    matcher.open.set()


def start(gate: Gate, **options: Any) -> Service:
    return Service(gate, **options)  # type: ignore[arg-type]  # what the service uses of a matcher


def test_pairs_that_wait_share_a_run(gate: Gate) -> None:
    runs: list[int] = []
    service = start(gate, max_batch=4, max_delay_ms=0, on_batch=lambda pairs, seconds: runs.append(pairs))
    first = service.match(PHOTO, PHOTO)
    assert gate.running.wait(60)
    rest = [service.match(PHOTO, PHOTO) for _ in range(5)]
    both = service.match(PHOTO, PHOTO, forward_backward=True)
    gate.open.set()
    for future in [first, *rest, both]:
        assert future.result(60).size_a == (30, 20)
    service.close()
    assert gate.batches == [(1, False), (4, False), (1, False), (1, True)]
    assert runs == [1, 4, 1, 1]


def test_a_lone_pair_waits_for_others_as_long_as_it_may(gate: Gate) -> None:
    gate.open.set()
    service = start(gate, max_batch=2, max_delay_ms=60_000)
    first = service.match(PHOTO, PHOTO)
    time.sleep(0.2)
    assert not first.done()
    second = service.match(PHOTO, PHOTO)
    assert first.result(30)
    assert second.result(30)
    assert gate.batches == [(2, False)]
    service.close()


def test_past_the_limit_callers_are_told_when_to_come_back(gate: Gate) -> None:
    service = start(gate, max_queue=2)
    running = service.match(PHOTO, PHOTO)
    assert gate.running.wait(60)
    waiting = [service.match(PHOTO, PHOTO) for _ in range(2)]
    with pytest.raises(BusyError, match="2 requests wait") as refused:
        service.match(PHOTO, PHOTO)
    assert refused.value.retry_after >= 1
    assert waiting[0].cancel()  # its caller gave up: there is room again
    late = service.match(PHOTO, PHOTO)
    gate.open.set()
    assert all(future.result(60) for future in (running, waiting[1], late))
    service.close()
    assert sum(count for count, _ in gate.batches) == 3
    with pytest.raises(BusyError, match="stopping"):
        service.match(PHOTO, PHOTO)


def test_closing_finishes_what_waits(gate: Gate) -> None:
    service = start(gate)
    futures = [service.match(PHOTO, PHOTO) for _ in range(4)]
    ending = threading.Thread(target=service.close)
    ending.start()
    gate.open.set()
    ending.join(60)
    assert all(future.result(0) for future in futures)


def test_an_unreadable_photo_fails_alone_and_a_failed_run_fails_all_of_it(gate: Gate) -> None:
    service = start(gate, max_batch=3, max_delay_ms=60_000)
    good, bad, last = service.match(PHOTO, PHOTO), service.match(b"no photo", PHOTO), service.match(PHOTO, PHOTO)
    gate.open.set()
    with pytest.raises(InputError):
        bad.result(60)
    assert good.result(60)
    assert last.result(60)
    assert gate.batches == [(2, False)]
    gate.error = BackendError("the device is gone")
    futures = [service.match(PHOTO, PHOTO) for _ in range(3)]
    for future in futures:
        with pytest.raises(BackendError, match="gone"):
            future.result(60)
    service.close()


def test_a_failed_request_keeps_no_photo_in_memory(gate: Gate) -> None:
    """Without the collector of rings: what fails thousands of times a minute must not wait for it."""
    service = start(gate)
    photo = np.zeros((8, 8, 3), np.uint8)  # smaller than a photo may be
    gone = threading.Event()
    weakref.finalize(photo, gone.set)
    gc.collect()
    gc.disable()
    try:
        future = service.match(photo, PHOTO)
        with pytest.raises(InputError):
            future.result(60)
        del photo
        assert gone.wait(10)
    finally:
        gc.enable()
    service.close()


def test_settings_out_of_range_are_refused(gate: Gate) -> None:
    for options in ({"streams": 0}, {"max_batch": 0}, {"max_queue": 0}, {"max_delay_ms": -1.0}):
        with pytest.raises(InputError):
            start(gate, **options)
