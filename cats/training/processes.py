"""The processes of a run: those that torchrun starts, the loaders of photos, and Ctrl-C."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from cats.core.console import note
from cats.core.errors import BackendError, CatsError, InputError
from cats.training.configs import TrainConfig
from cats.training.objectives import Batch, TrainingSet

_LOADER_DIED = ("DataLoader worker", "shared memory", "torch_shm", "Bus error")


class Interrupts:
    """While it is entered, the first Ctrl-C is only remembered, so that the update in progress can end; the second one,
    or the first while ``at_once`` is set, raises :class:`KeyboardInterrupt` where it arrives."""

    def __init__(self) -> None:
        self.seen = False
        self.at_once = False
        self._before: Any = None

    def __enter__(self) -> Interrupts:
        on_main = threading.current_thread() is threading.main_thread()
        if on_main and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
            self._before = signal.signal(signal.SIGINT, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.seen or self.at_once:
            raise KeyboardInterrupt
        self.seen = True
        note("stopping after this update; Ctrl-C again stops at once and saves nothing")


def load_batches(
    dataset: TrainingSet,
    config: TrainConfig,
    *,
    first: int,
    end: int,
    rank: int,
    world: int,
    workers: int,
    device: torch.device,
) -> Iterator[list[Batch]]:
    """Lists of ``config.accumulate`` batches on the device, for updates ``first`` to ``end - 1``.

    Raises:
        CatsError: what a loader process raised, without its traceback.
    """
    loader: DataLoader[dict[str, Any]] = DataLoader(
        dataset,  # type: ignore[arg-type]  # PyTorch asks for its own class, and takes anything with items
        batch_size=config.batch_size,
        sampler=_Share(first * config.accumulate, end * config.accumulate, config.batch_size, rank, world),
        num_workers=workers,
        pin_memory=device.type == "cuda",
        prefetch_factor=4 if workers else None,
        worker_init_fn=_leave_interrupts_to_the_main_process,
    )
    pending: list[Batch] = []
    try:
        for batch in loader:
            pending.append({key: value.to(device, non_blocking=True) for key, value in batch.items()})
            if len(pending) == config.accumulate:
                yield pending
                pending = []
    except CatsError as error:  # of a worker, whose traceback PyTorch puts before the message
        raise type(error)(str(error).rstrip().rpartition(f"{type(error).__name__}: ")[2]) from error


@contextlib.contextmanager
def explain_dead_loaders() -> Iterator[None]:
    """Turn PyTorch's error about a loader process that the system ended, which arrives anywhere in the main process,
    into a :class:`BackendError` that says how to go on."""
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        hung_up = isinstance(error, (ConnectionError, EOFError))  # while a batch was handed over
        if not hung_up and not any(words in str(error) for words in _LOADER_DIED):
            raise
        raise BackendError(
            f"a process that loads photos was ended by the system ({_last_line(error)}), as happens where memory or "
            "/dev/shm is short: go on with --resume --workers 0 (if nothing was saved yet, begin with it), which loads "
            "photos in the main process"
        ) from error


@contextlib.contextmanager
def without_loader_signals() -> Iterator[None]:
    """While it is entered, PyTorch says nothing about loader processes that end. Its handler of SIGCHLD raises wherever
    the main process is: also where it saves what a dead loader left, whose connection hangs up before the signal."""
    here = threading.current_thread() is threading.main_thread() and sys.platform != "win32"  # which has no SIGCHLD
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if here else None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGCHLD, before)


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].rstrip(". ").rpartition("Error: ")[2][:120]


class _Share:
    """Indices of the items that one of ``world`` processes trains on, batch by batch, without a list of them all."""

    def __init__(self, first: int, end: int, batch_size: int, rank: int, world: int):
        self.batches, self.batch_size, self.rank, self.world = range(first, end), batch_size, rank, world

    def __len__(self) -> int:
        return len(self.batches) * self.batch_size

    def __iter__(self) -> Iterator[int]:
        for batch in self.batches:
            start = (batch * self.world + self.rank) * self.batch_size
            yield from range(start, start + self.batch_size)


def _leave_interrupts_to_the_main_process(worker: int) -> None:
    """A terminal sends Ctrl-C to all processes; the main one says what happened and ends the loader's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = _unless_hung_up


def _unless_hung_up(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Print what ended a thread, other than that the main process went away while a batch was handed over."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


def local_rank() -> int:
    """Number of this process on its machine, as torchrun says."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def join_process_group(device: str) -> tuple[int, int]:
    """Rank and world size; joins the group that torchrun announces in the environment.

    Raises:
        InputError: a GPU by its index, where every process has its own.
        BackendError: fewer GPUs than processes.
    """
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"} <= os.environ.keys():
        return 0, 1
    cuda = device.startswith("cuda")
    if cuda:
        if device != "cuda":
            raise InputError(f"--device {device}: under torchrun every process takes its own GPU, give --device cuda")
        if local_rank() >= torch.cuda.device_count():
            raise BackendError(
                f"process {local_rank() + 1} of this machine has no GPU, PyTorch sees {torch.cuda.device_count()}; "
                "give torchrun --nproc-per-node at most that"
            )
        torch.cuda.set_device(local_rank())  # collectives of Python objects go through the current GPU
    if not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo")
        atexit.register(_leave_process_group)
    return dist.get_rank(), dist.get_world_size()


def _leave_process_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
