"""Building TensorRT engines from exported ONNX files: a pure plan and its sidecar.

Networks are strongly typed: the precision is what the ONNX file says. With TensorRT-RTX this runs on machines without a
GPU. A plan holds compiled code; load plans only from where you would run programs from.
"""

from __future__ import annotations

import hashlib
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from cats.core.console import progress
from cats.core.errors import BackendError, InputError, ModelFileError
from cats.core.external_data import whole_model
from cats.core.files import atomic_paths, write_bytes
from cats.core.metadata import Metadata, read_onnx_metadata
from cats.core.outputs import OutputPlan
from cats.runtime.backends import CHECKPOINT_SUFFIXES, ENGINE_SUFFIXES
from cats.runtime.hardware import nvidia
from cats.runtime.tensorrt.flavours import Flavour, find_flavour
from cats.runtime.tensorrt.plugins import creation_flags, register_plugins
from cats.runtime.tensorrt.sidecar import sidecar_path, sidecar_text

DEFAULT_BATCH = (1, 1, 8)
DEFAULT_SIDES = (32, 640, 2048)
DEFAULT_POINTS = (1, 32, 1024)
RTX_TARGETS = ("sm80", "sm86", "sm89", "sm120", "sm121")


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is built.

    Attributes:
        batch: smallest, best and largest number of pairs, for models with a dynamic batch; None is
            :data:`DEFAULT_BATCH`, and one pair for models that take images of any size.
        sides: smallest, best and largest height and width in pixels, and
        points: of points, for models that take images of any size; None is :data:`DEFAULT_SIDES`,
            :data:`DEFAULT_POINTS`.
        workspace_mb: memory that TensorRT may use while it runs; None leaves its default.
        optimization: 0 (quick build) to 5 (quick engine); None leaves the default.
        tf32: let float32 products use TensorFloat-32.
        targets: compute capabilities to build for, such as ``sm89``; TensorRT-RTX only.
        version_compatible: runs with newer releases of TensorRT too.
        hardware_compatible: runs on newer GPUs too (Ampere and later).
        strip_weights, refittable: leave the weights out; allow replacing them.
    """

    batch: tuple[int, int, int] | None = None
    sides: tuple[int, int, int] | None = None
    points: tuple[int, int, int] | None = None
    workspace_mb: int | None = None
    optimization: int | None = None
    tf32: bool = False
    targets: tuple[str, ...] = ()
    version_compatible: bool = False
    hardware_compatible: bool = False
    strip_weights: bool = False
    refittable: bool = False

    def __post_init__(self) -> None:
        for name, values in (("batch", self.batch), ("sides", self.sides), ("points", self.points)):
            low, best, high = values or (1, 1, 1)
            if not 1 <= low <= best <= high:
                raise InputError(f"{name} {low},{best},{high}: expected 1 <= smallest <= best <= largest")
        if self.optimization is not None and not 0 <= self.optimization <= 5:
            raise InputError(f"optimization level {self.optimization}: 0 to 5")


def build_engine(
    onnx_path: str | Path,
    output: str | Path | None = None,
    *,
    flavour: str | None = None,
    options: EngineOptions | None = None,
    timing_cache: str | Path | None = None,
    force: bool = False,
) -> Path:
    """Build an engine; writes ``X.plan`` and ``X.plan.json`` together, or nothing.

    Args:
        onnx_path: file of ``cats-export``.
        output: plan to write; default: the ONNX file's name with ``.plan``, beside it.
        flavour: ``tensorrt`` or ``tensorrt-rtx``; default: the first installed.
        options: see :class:`EngineOptions`.
        timing_cache: file that makes later builds quicker; created where it is missing. Not of TensorRT-RTX.
        force: replace an existing engine.

    Returns:
        The plan's path.

    Raises:
        InputError: the plan exists already and ``force`` is off.
        ModelFileError: not a CATs model, or TensorRT's parser refuses a node (named).
        BackendError: no TensorRT, an option that it does not have here, or a failed build.
    """
    source = Path(onnx_path)
    plan = Path(output) if output else source.with_suffix(".plan")
    options = options or EngineOptions()
    _check_paths(source, plan, timing_cache, force)
    metadata = read_onnx_metadata(source)
    if (metadata.calibration or {}).get("target") == "cpu":
        raise ModelFileError(
            f"{source} was calibrated for CPUs, TensorRT has no zero points: cats-calibrate --for tensorrt"
        )
    chosen, trt = find_flavour(flavour)
    messages = _messages(trt)
    builder = trt.Builder(messages)
    flags = 0
    if hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):  # its bit moved in 11: always from the enum
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    plugins = register_plugins(trt, chosen, source, portable=options.hardware_compatible)
    if plugins:
        flags |= creation_flags(trt)
    network = builder.create_network(flags)
    _parse(trt, network, messages, source)
    network.name = f"cats-{metadata.weights_sha256[:16]}-{metadata.precision}"
    config = builder.create_builder_config()
    _configure(trt, chosen, config, options)
    profiles = _add_profile(builder, network, config, options, metadata)
    cache = _load_timing_cache(chosen, config, timing_cache)
    data = _build(trt, builder, network, config, messages)
    if cache is not None and timing_cache is not None:
        write_bytes(timing_cache, bytes(config.get_timing_cache().serialize()))
    described = _describe(data, chosen, trt, source, network.name, profiles, plugins, options)
    _write(plan, data, sidecar_text(metadata.with_(engine=described)), force)
    return plan


def _check_paths(source: Path, plan: Path, timing_cache: str | Path | None, force: bool) -> None:
    """Find what cannot work before minutes of work."""
    if source.suffix.lower() in CHECKPOINT_SUFFIXES:
        raise ModelFileError(f"{source} is a checkpoint: export it first, cats-export --ckpt {source} --fp16")
    if plan.suffix.lower() not in ENGINE_SUFFIXES:
        raise InputError(f"{plan}: the name of an engine ends in {' or '.join(ENGINE_SUFFIXES)}")
    outputs = OutputPlan(force=force).reads(source)
    outputs.writes(plan, sidecar_path(plan)).writes(timing_cache, updates=True).check()


def _describe(
    data: bytes,
    flavour: Flavour,
    trt: ModuleType,
    source: Path,
    network: str,
    profiles: list[dict[str, Any]],
    plugins: list[str],
    options: EngineOptions,
) -> dict[str, Any]:
    """The ``engine`` part of the sidecar."""
    return {
        "flavour": flavour.name,
        "version": trt.__version__,
        "targets": list(options.targets) or _present_gpu(flavour, options),
        "version_compatible": options.version_compatible,
        "hardware_compatible": options.hardware_compatible,
        "stripped": options.strip_weights,
        "network": network,
        "profiles": profiles,
        "plugins": plugins,
        "sha256": hashlib.sha256(data).hexdigest(),
        "source": source.name,
    }


def _write(plan: Path, data: bytes, sidecar: str, force: bool) -> None:
    """Put plan and sidecar in place together: one without the other is of no use."""
    with atomic_paths(plan, sidecar_path(plan)) as (first, second):
        try:
            first.write_bytes(data)
            second.write_text(sidecar, "utf-8")
        except OSError as problem:
            raise InputError(f"cannot write {plan}: {problem.strerror}") from problem
        OutputPlan(force=force).writes(plan, sidecar_path(plan)).check()  # another build may have been quicker


def _present_gpu(flavour: Flavour, options: EngineOptions) -> list[str]:
    """The GPU that TensorRT builds for where it builds for no other; TensorRT-RTX builds for all that it supports."""
    gpus = nvidia().gpus
    if flavour.targets or options.hardware_compatible or not gpus:
        return []
    major, minor = gpus[0].compute_capability
    return [f"sm{major}{minor}"]


def _messages(trt: ModuleType) -> Any:
    """A logger that keeps errors for the exception's text instead of printing them."""

    class Messages(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

    return Messages()


def _parse(trt: ModuleType, network: Any, messages: Any, source: Path) -> None:
    parser = trt.OnnxParser(network, messages)
    if parser.parse(whole_model(source) or source.read_bytes()):
        return
    found = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        name = error.node_name() if hasattr(error, "node_name") else ""
        operator = error.node_operator() if hasattr(error, "node_operator") else ""
        found.append(f"node {name or error.node()} ({operator or 'unknown operator'}): {error.desc()}")
    raise ModelFileError(f"{source}: TensorRT's parser refuses {'; '.join(found[:3]) or 'the file'}")


def _configure(trt: ModuleType, flavour: Flavour, config: Any, options: EngineOptions) -> None:
    if options.workspace_mb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
    if options.optimization is not None:
        config.builder_optimization_level = options.optimization
    if options.tf32:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)
    for wanted, name in (
        (options.version_compatible, "VERSION_COMPATIBLE"),
        (options.strip_weights, "STRIP_PLAN"),
        (options.refittable, "REFIT"),
    ):
        if wanted:
            if not hasattr(trt.BuilderFlag, name):
                raise BackendError(f"{flavour.name} {trt.__version__} cannot build with {name}")
            if flavour.targets:
                _refuse_on_rtx(name)
            config.set_flag(getattr(trt.BuilderFlag, name))
    if options.hardware_compatible:
        if flavour.targets:
            raise BackendError(f"{flavour.name} has no hardware-compatible engines: give --target for each GPU instead")
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.targets:
        _set_targets(trt, flavour, config, options.targets)


def _refuse_on_rtx(flag: str) -> None:
    """What TensorRT-RTX offers but does not do, or not on this machine; its own words say nothing to a user."""
    if flag == "VERSION_COMPATIBLE":
        raise BackendError("tensorrt-rtx has no version-compatible engines: leave that out, or build with tensorrt")
    problem = nvidia().problem
    if problem:
        raise BackendError(
            f"tensorrt-rtx builds refittable and weight-stripped engines on a machine with a GPU only, and {problem}"
        )


def _set_targets(trt: ModuleType, flavour: Flavour, config: Any, targets: tuple[str, ...]) -> None:
    if not flavour.targets or not hasattr(config, "set_compute_capability"):
        raise BackendError(f"{flavour.name} builds for the GPU that is present only: leave out --target")
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        if target == "sm75":
            raise BackendError("tensorrt-rtx has no float32 products for sm75 (Turing), and every CATs model has some")
        known = target.startswith("sm")  # not the names that stand for the GPU that is present
        capability = getattr(trt.ComputeCapability, target.upper(), None) if known else None
        if capability is None:
            raise InputError(f"target {target!r}: {flavour.name} {trt.__version__} knows {', '.join(RTX_TARGETS)}")
        config.set_compute_capability(capability, index)


def _add_profile(
    builder: Any, network: Any, config: Any, options: EngineOptions, metadata: Metadata
) -> list[dict[str, Any]]:
    """One optimization profile over what the model leaves free; models of fixed shapes need none."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    shapes = {tensor.name: tuple(tensor.shape) for tensor in inputs}
    any_size = metadata.kind == "end-to-end"
    if not any_size and (options.sides or options.points):
        raise InputError(
            f"a model of kind {metadata.kind} takes images of one size and no points: leave out their ranges"
        )
    if options.batch is not None and all(shape[0] != -1 for shape in shapes.values()):
        size = next(iter(shapes.values()))[0]
        raise InputError(f"the model has a fixed batch of {size}: leave out --batch, or export it with a dynamic one")
    if not any(-1 in shape for shape in shapes.values()):
        return []
    batch = options.batch or ((1, 1, 1) if any_size else DEFAULT_BATCH)
    profile = builder.create_optimization_profile()
    described: dict[str, Any] = {}
    for name, shape in shapes.items():
        ranges = {0: batch}
        if any_size:
            sides, points = options.sides or DEFAULT_SIDES, options.points or DEFAULT_POINTS
            ranges |= {1: points} if name == "points_a" else {1: sides, 2: sides}
        free = {axis for axis, side in enumerate(shape) if side == -1}
        if not free <= ranges.keys():
            raise ModelFileError(f"input {name} {shape} has a dynamic side besides the batch: export the model again")
        chosen = [[ranges[axis][k] if axis in free else side for axis, side in enumerate(shape)] for k in range(3)]
        low, best, high = chosen
        profile.set_shape(name, low, best, high)
        described[name] = {"min": low, "opt": best, "max": high}
    config.add_optimization_profile(profile)
    return [described]


def _load_timing_cache(flavour: Flavour, config: Any, path: str | Path | None) -> Any:
    if path is None:
        return None
    if flavour.targets:
        raise BackendError(f"{flavour.name} has no timing cache, its builds time nothing: leave out --timing-cache")
    file = Path(path)
    cache = config.create_timing_cache(file.read_bytes() if file.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        raise BackendError(f"timing cache {path} was made by another TensorRT or GPU: remove it or give another file")
    return cache


def _build(trt: ModuleType, builder: Any, network: Any, config: Any, messages: Any) -> bytes:
    """Build with a progress bar; Ctrl-C, SIGTERM and SIGHUP stop TensorRT at its next step."""
    received: list[int] = []
    bar = progress()

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.tasks: dict[str, Any] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.tasks[phase_name] = bar.add_task(phase_name.lower(), total=num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            bar.update(self.tasks[phase_name], completed=step + 1)
            return not received

        def phase_finish(self, phase_name: str) -> None:
            bar.remove_task(self.tasks.pop(phase_name))

    monitor = Monitor()
    config.progress_monitor = monitor
    main_thread = threading.current_thread() is threading.main_thread()
    ways = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if main_thread else ()
    asked = [number for number in ways if signal.getsignal(number) is not signal.SIG_IGN]  # as nohup does
    previous = {number: signal.signal(number, lambda number, _: received.append(number)) for number in asked}
    try:
        with bar:
            data = builder.build_serialized_network(network, config)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if received:
        handler = previous[signal.Signals(received[0])]
        if callable(handler):
            handler(received[0], None)  # which says by what the command was ended
        raise KeyboardInterrupt
    if data is None:
        raise BackendError(
            f"TensorRT could not build the engine: {'; '.join(messages.errors[-2:]) or 'no reason given'}"
        )
    return bytes(data)
