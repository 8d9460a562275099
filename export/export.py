"""A model to ONNX files: graph, precision, storage, verification, metadata."""

from __future__ import annotations

import gc
import importlib.metadata
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import onnx

import cats
from cats.checkpoints import weights_sha256
from cats.core.console import working
from cats.core.errors import InputError
from cats.core.files import atomic_paths
from cats.core.metadata import Metadata, write_model
from cats.core.outputs import OutputPlan
from cats.data import open_dataset
from cats.data.photo_pairs import PhotoPairs
from cats.export.forms import FORMS, build_form
from cats.export.fp16.assign import to_fp16
from cats.export.fp16.input_moments import measure_moments
from cats.export.graph.deployment import DeploymentOptions
from cats.export.kernels.plugin_nodes import has_correlation, use_plugins
from cats.export.modules import find_modules
from cats.export.onnx_writer import DEFAULT_OPSET
from cats.export.pairs import demo_pairs
from cats.export.storage import inline_functions, store_as_half, weight_factors
from cats.export.verify import Parity, verify
from cats.model import CATs
from cats.runtime.hardware import compact_memory
from cats.runtime.split import name_files

WEIGHTS = ("fp32", "fp16-storage")
"""How weights are stored: as they are, or as float16 and computed in float32."""

_TOOLS = ("torch", "timm", "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        files: kind (pair, encoder, matcher, end-to-end) -> file.
        metadata: kind -> as embedded in that file.
        parity: of all files together; None where verification was switched off.
    """

    files: dict[str, Path]
    metadata: dict[str, Metadata]
    parity: Parity | None


@compact_memory()  # the steps after PyTorch's exporter need little of what that freed
def export_onnx(
    model: CATs,
    path: str | Path,
    *,
    form: str = "pair",
    opset: int = DEFAULT_OPSET,
    batch: int | None = None,
    options: DeploymentOptions | None = None,
    fp16: bool = False,
    float32: Collection[str] = (),
    weights: str = "fp32",
    inline: bool = False,
    plugins: bool = False,
    pairs: PhotoPairs | None = None,
    data: str | None = None,
    verified: bool = True,
) -> ExportReport:
    """Write a model as ONNX, compare it with PyTorch, and embed what it is and how far it is from PyTorch.

    Args:
        model: is not changed.
        path: file to write; with form ``split``, ``X.onnx`` stands for ``X.encoder.onnx`` and ``X.matcher.onnx``. Files
            are complete, with their figures, even where verification fails.
        form: ``pair``, ``split`` or ``end-to-end``; inputs and outputs: see :func:`cats.export.forms.build_form`.
        opset: see :data:`cats.export.onnx_writer.OPSETS`.
        batch: fixed batch size; None leaves it free.
        options: rewrites of the graph, all by default.
        fp16: type the graph in float16 where that is safe (:func:`cats.export.fp16.assign.to_fp16`).
        float32: with ``fp16``, modules to leave in float32, such as ``decoder.blocks.0.mlp``.
        weights: one of :data:`WEIGHTS`.
        inline: write ``cats::Correlation`` as plain operators instead of a function.
        plugins: split it into two nodes that TensorRT runs as our kernels, which the file then holds; every other
            library expands their functions.
        pairs: images to verify with; the shipped photos and views of them by default.
        data: annotated pairs ``KIND:DIR`` on which to measure PCK before and after.
        verified: compare with PyTorch.

    Raises:
        InputError: a file cannot be written, or an option is out of range.
        BackendError: the kernels of ``plugins`` cannot be compiled here.
    """
    if plugins and inline:
        raise InputError("kernels for TensorRT take the place of cats::Correlation, which --inline removes: choose one")
    if weights not in WEIGHTS:
        raise InputError(f"weights {weights!r}: choose {', '.join(WEIGHTS)}")
    if float32 and not fp16:
        raise InputError(f"modules to leave in float32 ({', '.join(sorted(float32))}) are for a model in float16")
    if fp16 and options is not None and options.winograd:
        raise InputError(
            "float16 is for GPUs, whose libraries choose such convolutions themselves: leave out --for cpu"
        )
    if fp16 and weights != "fp32":
        raise InputError("a model in float16 stores its weights as float16 anyway: leave out fp16-storage")
    files = form_files(path, form)
    _check_before(files, data)
    precision = "fp16" if fp16 else "fp32"
    options = options or DeploymentOptions()
    with working("building the graph"):
        models = build_form(model, form, opset=opset, batch=batch, options=options)
        gc.collect()  # PyTorch's exporter leaves copies of the weights in cycles
    _check_modules(models, float32)
    for kind, exported in models.items():
        if fp16:
            with working("typing it in float16"):
                modules = find_modules(exported, float32)
                exported = to_fp16(exported, modules, measure_moments(exported, model.config.preprocessing))
        if inline:
            exported = inline_functions(exported)
        if plugins and has_correlation(exported):
            exported = use_plugins(exported)
        models[kind] = exported
    judged = precision
    if weights == "fp16-storage":
        factors = weight_factors(model, options)
        for kind, exported in models.items():
            models[kind], rounded = store_as_half(exported, factors)
            judged = "fp16" if rounded else judged  # rounded weights are as far from the checkpoint's as float16 is
    parity = None
    if verified:
        with working("comparing it with PyTorch"):
            parity = verify(models, model, pairs or demo_pairs(), batch=batch, precision=judged, data=data)
    metadata = {}
    with atomic_paths(*files.values()) as temporaries:
        for (kind, exported), temporary in zip(models.items(), temporaries, strict=True):
            described = describe(
                model,
                kind,
                precision=precision,
                opset=opset,
                parity=parity,
                weights=None if weights == "fp32" else weights,
                target="cpu" if options.winograd else None,
                float32=tuple(sorted(float32)) or None,
            )
            metadata[kind] = write_model(exported, described, temporary)
    return ExportReport(files, metadata, parity)


def describe(
    model: CATs,
    kind: str,
    *,
    precision: str,
    opset: int,
    parity: Parity | None = None,
    weights: str | None = None,
    target: str | None = None,
    float32: tuple[str, ...] | None = None,
) -> Metadata:
    """The metadata of an exported model; arguments as the fields of :class:`~cats.core.metadata.Metadata`."""
    grid = model.config.feature_size
    return Metadata(
        kind=kind,
        config=model.config.to_dict(),
        preprocessing=model.config.preprocessing,
        precision=precision,
        opset=opset,
        weights_sha256=weights_sha256(model),
        grid=(grid, grid),
        tools=tool_versions(),
        verified=parity is not None and parity.passed,
        parity=None if parity is None else parity.to_dict(),
        weights=weights,
        target=target,
        float32=float32,
    )


def tool_versions() -> dict[str, str]:
    """Versions of what an export depends on."""
    versions = {"cats-toolkit": cats.__version__}
    for name in _TOOLS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _check_before(files: dict[str, Path], data: str | None) -> None:
    """Find what cannot work before minutes of work."""
    OutputPlan(force=True).writes(*files.values(), suffixes=(".onnx",)).check()
    if data is not None:
        open_dataset(data)


def _check_modules(models: dict[str, onnx.ModelProto], wanted: Collection[str]) -> None:
    """Refuse names that no file has; each file has those of its own part of the model."""
    unknown = set(wanted).difference(*(find_modules(model, wanted) for model in models.values()))
    if unknown:
        raise InputError(f"the model has no module {', '.join(sorted(unknown))} to leave in float32")


def form_files(path: str | Path, form: str) -> dict[str, Path]:
    """Kind -> file of a form, given the name of :func:`export_onnx`; raises :class:`InputError` for a folder."""
    return name_files(path, FORMS.get(form, ()))
