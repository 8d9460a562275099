"""ONNX Runtime's execution providers: which are here, which one to use and why, and why one does not start."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cats.core.errors import BackendError, InputError, require
from cats.core.onnx_summary import read_onnx_summary
from cats.runtime.backends.ort_session import first_line
from cats.runtime.hardware import nvidia

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
}
"""Short names of the providers with settings of ours; any other one of the installed build goes by its full name."""

CPU, CUDA, TENSORRT, TENSORRT_RTX = PROVIDERS.values()
ENGINE_MAX_BATCH = 8
"""Largest batch of the engines that the TensorRT providers build for a file with dynamic batch."""

_RTX_PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"


def available_providers(ort: Any) -> list[str]:
    """Providers of the installed build and of registered plugins, by full name."""
    names = list(ort.get_available_providers())
    if hasattr(ort, "get_ep_devices"):
        names += [device.ep_name for device in ort.get_ep_devices()]
    return list(dict.fromkeys(names))


def choose_provider(ort: Any, wanted: str | None) -> tuple[str, str]:
    """Full name of the provider to use, and why.

    Args:
        ort: the module ``onnxruntime``.
        wanted: short or full name; ``None`` takes CUDA where the build has it and the driver lists a GPU, else the CPU.

    Raises:
        BackendError: the provider asked for is not in this installation, or its GPU is not there; with the fix.
    """
    available = available_providers(ort)
    if wanted is None:
        if CUDA not in available:
            return CPU, "this onnxruntime build has no CUDA"
        problem = nvidia().problem
        return (CPU, problem) if problem else (CUDA, "a GPU is there")
    name = PROVIDERS.get(wanted.lower(), wanted)
    check_gpu(name, 0)
    if name == TENSORRT_RTX:
        _register_rtx_plugin(ort)
    elif name not in available:
        shorts = [short for short, full in PROVIDERS.items() if full in available]
        others = [full for full in available if full not in PROVIDERS.values() and full != "AzureExecutionProvider"]
        fix = "; for NVIDIA GPUs: pip uninstall onnxruntime, then pip install 'cats-toolkit[gpu]'"
        raise BackendError(
            f"onnxruntime {ort.__version__} here has no provider {wanted!r}; it has {', '.join(shorts + others)}"
            + (fix if name in (CUDA, TENSORRT) else "")
        )
    return name, "as asked"


def check_gpu(provider: str, device: int) -> None:
    """Refuse an NVIDIA provider where the driver lists no such GPU, with the reason."""
    if provider not in (CUDA, TENSORRT, TENSORRT_RTX):
        return
    driver = nvidia()
    if driver.problem:
        raise BackendError(f"{provider} needs an NVIDIA GPU: {driver.problem}; use --provider cpu")
    if not 0 <= device < len(driver.gpus):
        raise BackendError(f"there is no GPU {device}: the driver lists {len(driver.gpus)}, counted from 0")


def provider_options(
    provider: str, model: str | Path, *, device: int, cache_dir: str | Path | None, cache_key: str
) -> dict[str, str]:
    """Settings of a provider for one model.

    Args:
        cache_dir: folder in which the TensorRT providers keep their engines; made if missing.
        cache_key: begins the names of files in it.

    Raises:
        InputError: ``cache_dir`` cannot be made, or the provider builds no engines.
    """
    if cache_dir is not None:
        if provider not in (TENSORRT, TENSORRT_RTX):
            raise InputError(f"{provider} builds no engines: a cache folder (--cache) is for tensorrt and tensorrt-rtx")
        try:
            Path(cache_dir).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the engine cache {cache_dir}: {error.strerror}") from error
    if provider == CUDA:
        return {"device_id": str(device), "use_tf32": "0", **convolution_search(model)}
    if provider == TENSORRT:
        cache = {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(cache_dir),
            "trt_engine_cache_prefix": cache_key,
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(cache_dir),
        }
        profile = shape_profile("trt_profile", model)
        return {"device_id": str(device), **profile, **(cache if cache_dir is not None else {})}
    if provider == TENSORRT_RTX:
        cache = {"nv_runtime_cache_path": str(cache_dir)} if cache_dir is not None else {}
        return {**shape_profile("nv_profile", model), **cache}
    return {}


def convolution_search(model: str | Path) -> dict[str, str]:
    """How cuDNN chooses algorithms: by trying all of them, which takes seconds for each new batch size, only where the
    batch is fixed; else by its own estimate."""
    fixed = all(isinstance(size, int) for node in read_onnx_summary(model).inputs for size in node.shape)
    return {} if fixed else {"cudnn_conv_algo_search": "HEURISTIC"}


def shape_profile(prefix: str, model: str | Path) -> dict[str, str]:
    """Shape ranges for a file with dynamic batch, so that a larger batch does not build another engine."""
    inputs = read_onnx_summary(model).inputs
    if all(isinstance(size, int) for node in inputs for size in node.shape):
        return {}

    def shapes(batch: int) -> str:
        sizes = {node.name: [size if isinstance(size, int) else batch for size in node.shape] for node in inputs}
        return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in sizes.items())

    return {
        f"{prefix}_min_shapes": shapes(1),
        f"{prefix}_opt_shapes": shapes(1),
        f"{prefix}_max_shapes": shapes(ENGINE_MAX_BATCH),
    }


def create_session(
    ort: Any, model: str | bytes, options: Any, provider: str, settings: dict[str, str], device: int = 0
) -> Any:
    """An inference session on exactly this provider.

    Args:
        model: path or content of an ONNX file.
        options: ``SessionOptions``.
        settings: see :func:`provider_options`.

    Raises:
        BackendError: the provider did not start; ONNX Runtime would have used another one in its place.
        Exception: whatever ONNX Runtime raises for the model.
    """
    with _quiet_start(ort, provider):
        if provider == TENSORRT_RTX:
            options.add_provider_for_devices([_rtx_device(ort, device)], settings)
            session = ort.InferenceSession(model, options)
        else:
            session = ort.InferenceSession(model, options, providers=[(provider, settings)], enable_fallback=0)
    active = session.get_providers()
    if provider not in active[:1]:
        reason = diagnose(ort, provider) or "it gave no reason"
        raise BackendError(
            f"{provider} did not start ({reason}); {', '.join(active)} would have been used in its place: "
            "ask for that with --provider cpu"
        )
    return session


def diagnose(ort: Any, provider: str) -> str | None:
    """Why a provider of this build does not start: the shared library it misses, or no GPU; None if unknown."""
    library = {CUDA: "cuda", TENSORRT: "tensorrt"}.get(provider)
    if library is None:
        return None
    folder = Path(ort.__file__).parent / "capi"
    bring = "cats-toolkit[gpu]" if library == "cuda" else "cats-toolkit[gpu,ort-tensorrt]"
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / f"libonnxruntime_providers_{library}.so"))
    except OSError as error:
        return f"{error}; pip install '{bring}'"
    return nvidia().problem


def installed_distributions() -> list[str]:
    """Distributions that bring the import name ``onnxruntime``; more than one overwrite each other's files."""
    return sorted(set(importlib.metadata.packages_distributions().get("onnxruntime", [])))


@contextlib.contextmanager
def _quiet_start(ort: Any, provider: str) -> Iterator[None]:
    """Load a GPU provider's libraries and keep its start from writing to the terminal.

    ONNX Runtime logs failures and goes on without the provider; here they are diagnosed and raised instead. Its log
    stays quiet for CUDA: for each float16 convolution without a fused plan it would write an error in the first run of
    a batch size, and then compute it otherwise.
    """
    if provider == CPU:
        yield
        return
    ort.set_default_logger_severity(4)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            if provider in (CUDA, TENSORRT):
                load_nvidia_libraries(ort)
            if provider == TENSORRT:
                with contextlib.suppress(ImportError):
                    importlib.import_module("tensorrt_libs")  # loads libnvinfer from its package
            yield
    finally:
        if provider not in (CUDA, TENSORRT):
            ort.set_default_logger_severity(2)  # ONNX Runtime's default


def load_nvidia_libraries(ort: Any) -> None:
    """CUDA and cuDNN from their PyPI packages, wherever those are installed; ONNX Runtime looks beside itself only."""
    if not hasattr(ort, "preload_dlls"):
        return
    spec = importlib.util.find_spec("nvidia")
    beside = Path(ort.__file__).resolve().parent.parent / "nvidia"
    for folder in map(Path, (spec.submodule_search_locations or ()) if spec else ()):
        if folder.resolve() != beside:
            for libraries in sorted(folder.glob("*/lib")):
                ort.preload_dlls(directory=str(libraries))
    ort.preload_dlls()


def _register_rtx_plugin(ort: Any) -> None:
    plugin = require(_RTX_PLUGIN, extra="gpu-rtx", purpose="use the TensorRT-RTX provider of ONNX Runtime")
    if not hasattr(ort, "register_execution_provider_library"):
        raise BackendError(f"onnxruntime {ort.__version__} takes no provider plugins: upgrade it to 1.24 or newer")
    if TENSORRT_RTX in available_providers(ort):
        return
    try:
        ort.register_execution_provider_library(plugin.get_ep_name(), plugin.get_library_path())
    except Exception as error:  # ONNX Runtime's exceptions have no base class of their own
        raise BackendError(f"the TensorRT-RTX provider plugin does not load: {first_line(error)}") from error


def _rtx_device(ort: Any, index: int) -> Any:
    """The plugin device of the TensorRT-RTX provider for a GPU."""
    devices = [device for device in ort.get_ep_devices() if device.ep_name == TENSORRT_RTX]
    if index >= len(devices):
        raise BackendError(f"{TENSORRT_RTX} runs on {len(devices)} of this machine's GPUs: there is no number {index}")
    return devices[index]
