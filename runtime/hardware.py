"""What this machine has: CPUs that may be used, instruction sets, NVIDIA driver and GPUs; no dependency but libc."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cats.core.errors import InputError

# Sets that decide which precision is fast on a CPU.
_INTERESTING = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "i8mm",
    "bf16",
)

_MMAP_THRESHOLD = -3  # of mallopt
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76  # of CUdevice_attribute


MAX_THREADS = 1024
"""Of one run; as in libcats. Libraries end the process where the system starts no more threads."""


def check_threads(threads: int | None) -> None:
    """Raise :class:`InputError` for a number of threads that no library takes; None is its own choice."""
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise InputError(f"threads must be at least 1 and at most {MAX_THREADS}, not {threads}")


@contextlib.contextmanager
def compact_memory() -> Iterator[None]:
    """Keep little more memory than is used while a model loads, and none that is free afterwards.

    Inference libraries copy the weights several times before they run, and glibc keeps freed blocks of up to 32 MB for
    later. Here it maps each block of a megabyte or more by itself, which goes back to the system when it is freed.
    Other C libraries are left alone.
    """
    libc: Any = ctypes.CDLL(None) if os.name == "posix" else None
    if not (hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")):
        yield
        return
    libc.mallopt(_MMAP_THRESHOLD, 1 << 20)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_THRESHOLD, 32 << 20)  # where glibc itself would have ended
        libc.malloc_trim(0)


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU as the driver reports it."""

    index: int
    name: str
    compute_capability: tuple[int, int]
    memory_bytes: int


@dataclass(frozen=True)
class Nvidia:
    """The NVIDIA driver: its CUDA version (major, minor) and GPUs, or the reason why there are none."""

    cuda: tuple[int, int] | None
    gpus: tuple[Gpu, ...]
    problem: str | None


def usable_cpus() -> int:
    """CPUs that this process may use: affinity mask and the quota of its control group (containers) considered."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota(Path("/sys/fs/cgroup"))
    return max(1, min(count, quota)) if quota else count


@functools.cache
def physical_cores() -> int:
    """Physical cores of the machine (Linux), else its logical CPUs."""
    siblings = set()
    for file in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology/thread_siblings_list"):
        with contextlib.suppress(OSError):
            siblings.add(file.read_text().strip())
    return len(siblings) or os.cpu_count() or 1


def _cgroup_quota(root: Path) -> int | None:
    """CPUs that the control group's quota amounts to, rounded up; None without a quota."""
    try:
        if (root / "cpu.max").is_file():
            quota, period = (root / "cpu.max").read_text().split()[:2]
        else:
            quota = (root / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu" / "cpu.cfs_period_us").read_text().strip()
        return -(-int(quota) // int(period)) if quota != "max" and int(quota) > 0 else None
    except (OSError, ValueError):
        return None


def cpu_name() -> str:
    """Marketing name of the CPU, or the architecture where the system does not tell."""
    for line in _cpuinfo():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return os.uname().machine if hasattr(os, "uname") else sys.platform


def cpu_features() -> tuple[str, ...]:
    """Instruction sets that matter for inference, of those the CPU has (Linux; elsewhere empty)."""
    for line in _cpuinfo():
        if line.startswith(("flags", "Features")):
            flags = set(line.partition(":")[2].split())
            return tuple(name for name in _INTERESTING if name in flags)
    return ()


def has_vnni(flags: Collection[str]) -> bool:
    """Whether a CPU with these instruction sets sums products of 8 bits in 32, and so without saturation."""
    return any("vnni" in flag for flag in flags)


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return []


@functools.cache
def nvidia() -> Nvidia:
    """Ask the NVIDIA driver for its GPUs; nothing is allocated on them."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return Nvidia(None, (), "no NVIDIA driver (libcuda.so.1 is not found)")
    status = driver.cuInit(0)
    if status:
        return Nvidia(None, (), f"the NVIDIA driver finds no usable GPU (cuInit: {_error_name(driver, status)})")
    version, count = ctypes.c_int(), ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    driver.cuDeviceGetCount(ctypes.byref(count))
    cuda = (version.value // 1000, version.value % 1000 // 10)
    gpus = tuple(_gpu(driver, index) for index in range(count.value))
    return Nvidia(cuda, gpus, None if gpus else "the NVIDIA driver lists no GPU (CUDA_VISIBLE_DEVICES?)")


def _gpu(driver: ctypes.CDLL, index: int) -> Gpu:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    memory, name = ctypes.c_size_t(), ctypes.create_string_buffer(256)
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, device)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    return Gpu(index, name.value.decode(errors="replace"), (major.value, minor.value), memory.value)


def _error_name(driver: ctypes.CDLL, status: int) -> str:
    text = ctypes.c_char_p()
    driver.cuGetErrorName(status, ctypes.byref(text))
    return text.value.decode() if text.value else f"error {status}"
