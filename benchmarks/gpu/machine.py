"""What the machine is, and its two ceilings: bytes per second and operations per second."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess

import torch

from cats.benchmarks.gpu.kit import device_ms, record, step

PACKAGES = [
    "torch",
    "triton",
    "numpy",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "cuda-core",
    "cuda-bindings",
    "cuda-pathfinder",
    "timm",
    "nvidia-cudnn-cu13",
    "nvidia-cublas",
    "cupy-cuda13x",
    "jsonschema",
    "typer",
    "rich",
    "pytest",
    "pillow",
]


def version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def main() -> None:
    record(
        "software", python=platform.python_version(), cpus=os.cpu_count(), packages={n: version(n) for n in PACKAGES}
    )
    step("nvidia-smi", lambda: {"says": _smi()})
    step("gpu", _gpu)
    step("copy", _copy)
    for name in ("fp32", "tf32", "fp16", "bf16"):
        step(f"matmul {name}", lambda name=name: _matmul(name))
    step("host to device", _transfer)


def _smi() -> str:
    query = "name,driver_version,memory.total,clocks.sm,clocks.mem,power.limit,persistence_mode"
    done = subprocess.run(["nvidia-smi", f"--query-gpu={query}", "--format=csv"], capture_output=True, text=True)
    return (done.stdout + done.stderr).strip()


def _gpu() -> dict:
    p = torch.cuda.get_device_properties(0)
    return {
        "device": p.name, "capability": [p.major, p.minor], "multiprocessors": p.multi_processor_count,
        "l2_mb": p.L2_cache_size / 1e6, "memory_gib": p.total_memory / 2**30, "cudnn": torch.backends.cudnn.version(),
    }  # fmt: skip


def _copy() -> dict:
    source = torch.randn(1 << 30, device="cuda")
    target = torch.empty_like(source)
    found = device_ms(lambda: target.copy_(source), rounds=20)
    return {**found, "tb_per_s": 2 * source.nbytes / found["ms"] / 1e9}


def _matmul(name: str) -> dict:
    torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(name, torch.float32)
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=dtype) for _ in range(2))
    found = device_ms(lambda: a @ b, rounds=10)
    return {**found, "tflops": 2 * 8192**3 / found["ms"] / 1e9}


def _transfer() -> dict:
    host = torch.empty(64 << 20, dtype=torch.uint8, pin_memory=True)
    device = torch.empty_like(host, device="cuda")
    up = device_ms(lambda: device.copy_(host, non_blocking=True), rounds=10)["ms"]
    down = device_ms(lambda: host.copy_(device, non_blocking=True), rounds=10)["ms"]
    return {"up_gb_per_s": host.nbytes / up / 1e6, "down_gb_per_s": host.nbytes / down / 1e6}


if __name__ == "__main__":
    main()
