"""ONNX Runtime backend: providers are chosen, reported and never replaced."""

from __future__ import annotations

import importlib
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from tiny_onnx import save_model, tiny_metadata, tiny_model

from cats.assets import asset
from cats.core.errors import BackendError, InputError, ModelFileError
from cats.core.images import preprocess, read_image
from cats.core.process import child_environment
from cats.runtime.backends import open_backend, ort_providers
from cats.runtime.backends import ort as ort_module
from cats.runtime.backends.ort import BoundRun, OnnxRuntimeBackend
from cats.runtime.backends.ort_providers import (
    CPU,
    CUDA,
    PROVIDERS,
    TENSORRT,
    TENSORRT_RTX,
    choose_provider,
    create_session,
    diagnose,
    provider_options,
    shape_profile,
)
from cats.runtime.commands.options import note_model
from cats.runtime.hardware import Gpu, Nvidia, compact_memory, nvidia

NO_GPU = Nvidia(None, (), "no NVIDIA driver (libcuda.so.1 is not found)")
ONE_GPU = Nvidia((13, 0), (Gpu(0, "Test GPU", (9, 0), 80 << 30),), None)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[Nvidia], None]:
    """Sets what the driver is said to report."""
    return lambda state: monkeypatch.setattr(ort_providers, "nvidia", lambda: state)


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the installed build list further providers, as onnxruntime-gpu does wherever it is installed."""

    def add(*names: str) -> None:
        everything = [*names, *onnxruntime.get_available_providers()]
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: everything)

    return add


def feeds(batch: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    return {name: rng.standard_normal((batch, 3, 256, 256)).astype(np.float32) for name in ("image_a", "image_b")}


def test_the_cpu_is_chosen_with_the_reason(model_file: Path, gpu: Callable, listed: Callable) -> None:
    gpu(NO_GPU)
    assert "this onnxruntime build has no CUDA" in OnnxRuntimeBackend(model_file).describe()
    listed(CUDA)
    backend = OnnxRuntimeBackend(model_file, threads=1)
    assert backend.provider == CPU
    assert "(no NVIDIA driver (libcuda.so.1 is not found)), 1 thread" in backend.describe()
    assert f"onnxruntime {onnxruntime.__version__}" in backend.describe()


def test_cuda_is_chosen_where_it_can_run(gpu: Callable, listed: Callable) -> None:
    gpu(ONE_GPU)
    listed(CUDA)
    assert choose_provider(onnxruntime, None) == (CUDA, "a GPU is there")
    assert choose_provider(onnxruntime, "cpu") == (CPU, "as asked")
    assert choose_provider(onnxruntime, "CUDAExecutionProvider") == (CUDA, "as asked")


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_does_not_start_is_not_replaced(model_file: Path, gpu: Callable, listed: Callable) -> None:
    """The installed CPU build really drops the provider and goes on with the CPU; that must not pass."""
    gpu(ONE_GPU)
    listed(CUDA)
    for provider in (None, "cuda"):
        with pytest.raises(
            BackendError, match=r"CUDAExecutionProvider did not start .*CPUExecutionProvider would have"
        ):
            OnnxRuntimeBackend(model_file, provider=provider)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "tensorrt-rtx"])
def test_no_gpu_is_said(model_file: Path, gpu: Callable, listed: Callable, provider: str) -> None:
    gpu(NO_GPU)
    listed(CUDA, TENSORRT)
    with pytest.raises(BackendError, match=r"needs an NVIDIA GPU: no NVIDIA driver .* use --provider cpu"):
        OnnxRuntimeBackend(model_file, provider=provider)


def test_gpus_are_counted(model_file: Path, gpu: Callable, listed: Callable) -> None:
    gpu(ONE_GPU)
    listed(CUDA)
    with pytest.raises(BackendError, match="there is no GPU 1: the driver lists 1, counted from 0"):
        OnnxRuntimeBackend(model_file, provider="cuda", device=1)


def test_a_build_without_the_provider_names_the_fix(model_file: Path, gpu: Callable) -> None:
    gpu(ONE_GPU)
    with pytest.raises(BackendError, match=r"has no provider 'cuda'; it has cpu; .*cats-toolkit\[gpu\]"):
        OnnxRuntimeBackend(model_file, provider="cuda")
    with pytest.raises(BackendError, match=r"cats-toolkit\[gpu-rtx\]"):
        OnnxRuntimeBackend(model_file, provider="tensorrt-rtx")


def test_missing_onnxruntime_names_the_extra(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match=r"pip install 'cats-toolkit\[cpu\]'"):
        OnnxRuntimeBackend(model_file)


def test_diagnosis_names_the_missing_library(tmp_path: Path, gpu: Callable) -> None:
    gpu(ONE_GPU)

    class Build:
        __file__ = str(tmp_path / "__init__.py")

    (tmp_path / "capi").mkdir()
    for name in ("shared", "cuda"):
        (tmp_path / "capi" / f"libonnxruntime_providers_{name}.so").write_bytes(b"not a library")
    text = diagnose(Build, CUDA)
    assert text is not None
    assert "providers_shared.so" in text
    assert "cats-toolkit[gpu]" in text
    assert diagnose(Build, CPU) is None


def test_options_of_the_providers(make_model: Callable[..., Path], tmp_path: Path) -> None:
    dynamic, fixed = make_model("dynamic.onnx"), make_model("fixed.onnx", batch=2)
    assert shape_profile("trt_profile", fixed) == {}
    assert shape_profile("trt_profile", dynamic) == {
        "trt_profile_min_shapes": "image_a:1x3x256x256,image_b:1x3x256x256",
        "trt_profile_opt_shapes": "image_a:1x3x256x256,image_b:1x3x256x256",
        "trt_profile_max_shapes": "image_a:8x3x256x256,image_b:8x3x256x256",
    }
    cache = tmp_path / "new" / "cache"
    common = {"device": 1, "cache_dir": cache, "cache_key": "cats_abc"}
    options = provider_options(TENSORRT, fixed, **common)
    assert options["trt_engine_cache_enable"] == "1"
    assert options["trt_engine_cache_path"] == str(cache)
    assert options["trt_engine_cache_prefix"] == "cats_abc"
    assert options["device_id"] == "1"
    assert cache.is_dir()
    assert provider_options(TENSORRT_RTX, fixed, **common) == {"nv_runtime_cache_path": str(cache)}
    assert provider_options(CUDA, fixed, device=0, cache_dir=None, cache_key="") == {"device_id": "0", "use_tf32": "0"}
    with pytest.raises(InputError, match="builds no engines"):
        provider_options(CUDA, fixed, **common)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot make the engine cache"):
        provider_options(TENSORRT, fixed, device=0, cache_dir=tmp_path / "file" / "cache", cache_key="")


def test_bound_runs_equal_plain_runs(model_file: Path) -> None:
    """The binding that GPU providers use, here with buffers in CPU memory."""
    session = create_session(onnxruntime, str(model_file), onnxruntime.SessionOptions(), CPU, {})
    bound = BoundRun(onnxruntime, session, feeds(2), ["flow", "confidence"], "cpu", 0)
    first = bound.run(feeds(2))
    kept = [value.copy() for value in first]
    other = {name: value[::-1] * 2 for name, value in feeds(2).items()}  # not contiguous
    second = bound.run(other)
    for value, copy, expected in zip(first, kept, session.run(None, feeds(2)), strict=True):
        np.testing.assert_array_equal(value, copy)
        np.testing.assert_array_equal(value, expected)
    expected = session.run(None, {name: np.ascontiguousarray(value) for name, value in other.items()})
    np.testing.assert_array_equal(second[0], expected[0])


def test_the_plugin_provider_runs_with_a_build_for_cpus(model_file: Path) -> None:
    """Which is what its extra installs, and which cannot allocate on a GPU."""
    backend = OnnxRuntimeBackend(model_file, provider="cpu", threads=1)
    expected = backend.run(feeds(2))
    backend.provider, backend._on_gpu = TENSORRT_RTX, True
    for name, value in backend.run(feeds(2)).items():
        np.testing.assert_array_equal(value, expected[name])


def test_int8_on_the_cuda_provider_is_advised_against(
    make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sessions = {}

    def on_the_host(self: OnnxRuntimeBackend, path: Path, *_: object, **__: object) -> object:
        return sessions.setdefault(path, onnxruntime.InferenceSession(str(path), providers=[CPU]))

    monkeypatch.setattr(OnnxRuntimeBackend, "_create", on_the_host)
    monkeypatch.setattr(OnnxRuntimeBackend, "_nodes_left_on_cpu", lambda self: Counter())
    monkeypatch.setattr(ort_module, "choose_provider", lambda ort, wanted: (PROVIDERS[wanted], "as asked"))
    monkeypatch.setattr(ort_module, "check_gpu", lambda provider, device: None)
    int8, plain = make_model("int8.onnx", precision="int8"), make_model("plain.onnx")
    for path, provider, advised in ((int8, "cuda", True), (int8, "cpu", False), (plain, "cuda", False)):
        backend = OnnxRuntimeBackend(path, provider=provider)
        assert (backend.advice is not None) == advised
        note_model(SimpleNamespace(path=path, metadata=backend.metadata, backend=backend), path)
        assert ("slower than a float file: run the fp32" in " ".join(capsys.readouterr().err.split())) == advised


@pytest.mark.parametrize(("provider", "left_at"), [(CUDA, 4), (TENSORRT_RTX, 2)])
def test_cuda_writes_no_log_of_what_it_computes_otherwise(provider: str, left_at: int) -> None:
    levels: list[int] = []
    with ort_providers._quiet_start(
        SimpleNamespace(set_default_logger_severity=levels.append, __file__=__file__), provider
    ):
        pass
    assert (levels[0], levels[-1]) == (4, left_at)


def test_session_settings(model_file: Path) -> None:
    backend = OnnxRuntimeBackend(model_file, threads=1)
    options = backend._session.get_session_options()
    assert options.intra_op_num_threads == 1
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    assert backend.max_batch is None
    assert [spec.shape for spec in backend.inputs] == [(None, 3, 256, 256)] * 2


def test_wrong_feeds_are_a_backend_error(model_file: Path) -> None:
    backend = OnnxRuntimeBackend(model_file, threads=1)
    with pytest.raises(BackendError, match=r"onnxruntime \(CPUExecutionProvider\) failed: .*image_a"):
        backend.run({**feeds(), "image_a": np.zeros((1, 3, 8, 8), np.float32)})


def test_a_model_too_new_for_this_onnxruntime(tmp_path: Path) -> None:
    model = tiny_model()
    model.ir_version = 999
    (tmp_path / ("long" * 50)).mkdir()
    path = save_model(tmp_path / ("long" * 50) / "future.onnx", model, tiny_metadata())
    with pytest.raises(ModelFileError, match=r"future\.onnx is too new for onnxruntime .*--opset"):
        OnnxRuntimeBackend(path)


def test_words_of_a_path_are_no_reason(tmp_path: Path) -> None:
    model = tiny_model()
    model.graph.node[0].op_type = "Unheard"
    (tmp_path / "opset 20").mkdir()
    path = save_model(tmp_path / "opset 20" / "model.onnx", model, tiny_metadata())
    with pytest.raises(ModelFileError, match="Unheard") as caught:
        OnnxRuntimeBackend(path)
    assert "too new" not in str(caught.value)


def test_an_unknown_operator_is_named(tmp_path: Path) -> None:
    model = tiny_model()
    model.graph.node[0].op_type = "AverageSwimmingPool"
    path = save_model(tmp_path / "odd.onnx", model, tiny_metadata())
    with pytest.raises(ModelFileError, match=r"cannot load .*odd\.onnx: .*AverageSwimmingPool"):
        OnnxRuntimeBackend(path)


def test_inputs_of_an_odd_type_are_refused(tmp_path: Path) -> None:
    text = onnx.helper.make_tensor_value_info("words", onnx.TensorProto.STRING, ["n"])
    out = onnx.helper.make_tensor_value_info("same", onnx.TensorProto.STRING, ["n"])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["words"], ["same"])], "g", [text], [out])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    path = save_model(tmp_path / "text.onnx", model, tiny_metadata())
    with pytest.raises(ModelFileError, match=r"words is tensor\(string\)"):
        OnnxRuntimeBackend(path)


@pytest.mark.gpu
@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "tensorrt-rtx"])
def test_gpu_providers_equal_the_cpu(provider: str) -> None:
    """With the shipped model: the hand-made one has places that are equal, of which each provider takes another."""
    if nvidia().problem:
        pytest.skip(str(nvidia().problem))
    if PROVIDERS[provider] not in ort_providers.available_providers(onnxruntime) and provider != "tensorrt-rtx":
        pytest.skip(f"this onnxruntime build has no {provider}")
    model_file = Path(asset("cats-tiny.onnx"))
    on_cpu = OnnxRuntimeBackend(model_file, provider="cpu")
    photos = [
        preprocess(read_image(asset(name)), on_cpu.metadata.preprocessing)
        for name in ("astronaut.jpg", "grace_hopper.jpg")
    ]
    pairs = {"image_a": np.stack(photos), "image_b": np.stack(photos[::-1])}
    expected = on_cpu.run(pairs)
    try:
        backend = OnnxRuntimeBackend(model_file, provider=provider)
    except BackendError as error:
        if "not installed" in str(error) or "cannot open shared object" in str(error):
            pytest.skip(str(error))
        raise
    for _ in range(2):
        np.testing.assert_allclose(backend.run(pairs)["flow"], expected["flow"], atol=0.01)


LOADING = """
import os
from pathlib import Path
from types import SimpleNamespace

from cats.runtime.hardware import compact_memory


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


with compact_memory():
    b"x" * (3 << 20)  # glibc would from now on keep blocks of this size
    blocks, small = [], []
    for size in [3 << 20] * 40:
        blocks.append(b"x" * size)
        small.append(bytearray(300_000))  # on top of the heap, so that it could not shrink
    full = resident()
    blocks.clear()
    print(full - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
def test_memory_that_loading_frees_goes_back_at_once(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LOADING],
        cwd=tmp_path,
        env=child_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) > 100  # MB of 126


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr("cats.runtime.hardware.ctypes.CDLL", lambda _: object())
    with compact_memory():
        pass


def test_cuda_libraries_are_found_wherever_their_packages_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("cu13", "cudnn"):
        (tmp_path / "elsewhere/nvidia" / part / "lib").mkdir(parents=True)
    (tmp_path / "site/onnxruntime").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    importlib.invalidate_caches()
    asked: list[str | None] = []
    ort = SimpleNamespace(
        __file__=str(tmp_path / "site/onnxruntime/__init__.py"),
        preload_dlls=lambda directory=None: asked.append(directory),
    )
    ort_providers.load_nvidia_libraries(ort)
    assert asked[-1] is None  # and beside ONNX Runtime
    assert {str(tmp_path / "elsewhere/nvidia" / part / "lib") for part in ("cu13", "cudnn")} <= set(asked)


def test_convolutions_are_searched_where_the_batch_is_fixed(model_file: Path, tmp_path: Path) -> None:
    options = ort_providers.provider_options(ort_providers.CUDA, model_file, device=0, cache_dir=None, cache_key="key")
    assert options == {"device_id": "0", "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
    model = onnx.load(model_file)
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, tmp_path / "fixed.onnx")
    assert ort_providers.convolution_search(tmp_path / "fixed.onnx") == {}


@pytest.mark.parametrize("batch", [1025, 2**28])
def test_a_fixed_batch_of_any_size_is_refused_before_it_is_loaded(tmp_path, batch):
    path = save_model(tmp_path / "m.onnx", tiny_model(batch), tiny_metadata())
    for backend in ("onnxruntime", "openvino"):
        with pytest.raises(ModelFileError, match=f"fixed batch of {batch}"):
            open_backend(path, backend)
