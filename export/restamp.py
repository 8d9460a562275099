"""Comparing files that exist with PyTorch again, and stamping them with the result.

For files that another tool has changed since they were verified: graph and weights stay to the byte as they are, the
metadata get the precision that the graph shows, the figures, and the digest that binds them.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from cats.checkpoints import weights_sha256
from cats.core.errors import InputError, ModelFileError
from cats.core.metadata import Metadata, read_onnx_metadata, write_metadata
from cats.core.onnx_file import content_digest
from cats.data.photo_pairs import PhotoPairs
from cats.export.export import ExportReport, tool_versions
from cats.export.fp16.emulate import computes_in_half
from cats.export.pairs import demo_pairs
from cats.export.verify import verify
from cats.model import CATs
from cats.runtime.split import find_split

_FLOAT8 = range(onnx.TensorProto.FLOAT8E4M3FN, onnx.TensorProto.FLOAT8E5M2FNUZ + 1)
_INTEGER_OPERATORS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger")


def verify_files(
    model: CATs,
    path: str | Path,
    output: str | Path | None = None,
    *,
    pairs: PhotoPairs | None = None,
    data: str | None = None,
) -> ExportReport:
    """Compare an ONNX file of ours, or a split pair, with ``model`` and write the result into its metadata.

    Args:
        model: with the weights that the file was exported from.
        path: file; either one of a split pair stands for both.
        output: file to write instead; not of a split pair.
        pairs, data: as of :func:`cats.export.export.export_onnx`.

    Raises:
        ModelFileError: unreadable, without metadata, of another model, or with its weights in another file.
        InputError: the result cannot be written.
    """
    files = list(find_split(path) or (Path(path),))
    if output is not None and len(files) > 1:
        raise InputError(f"{files[0]} and {files[1]} are stamped where they are: leave out --output")
    opened = {file: _open(file, model) for file in files}
    models = {metadata.kind: exported for metadata, exported in opened.values()}
    if set(models) not in ({"pair"}, {"end-to-end"}, {"encoder", "matcher"}):
        raise ModelFileError(f"{path} is of kind {', '.join(sorted(models))}: give an encoder and a matcher together")
    precisions = {kind: _precision(exported) for kind, exported in models.items()}
    stored_as_half = any(metadata.weights == "fp16-storage" for metadata, _ in opened.values())
    judged = max(precisions.values(), key=("fp32", "fp16", "bf16", "int8", "fp8").index)
    parity = verify(
        models,
        model,
        pairs or demo_pairs(),
        batch=_batch(next(iter(models.values()))),
        precision="fp16" if judged == "fp32" and stored_as_half else judged,
        data=data,
    )
    written, stamped = {}, {}
    for file, (metadata, _) in opened.items():
        target = Path(output) if output is not None else file
        stamped[metadata.kind] = metadata.with_(
            precision=precisions[metadata.kind],
            weights_sha256=weights_sha256(model),
            verified=parity.passed,
            parity=parity.to_dict(),
            accuracy=None,
            changed=False,
            content=content_digest(file.read_bytes()),
            tools={**metadata.tools, **tool_versions()},
        )
        write_metadata(file, stamped[metadata.kind], target)
        written[metadata.kind] = target
    return ExportReport(written, stamped, parity)


def _open(file: Path, model: CATs) -> tuple[Metadata, onnx.ModelProto]:
    metadata = read_onnx_metadata(file)
    if metadata.config != model.config.to_dict():
        raise ModelFileError(f"{file} is another model than the checkpoint: their configurations differ")
    try:
        exported = onnx.load(file, load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise ModelFileError(f"{file} is not an ONNX file: {error}") from error
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in exported.graph.initializer):
        raise ModelFileError(
            f"{file} keeps its weights in another file, to which no stamp can bind it: store them inside with "
            f"onnx.save(onnx.load({file.name!r}), {file.name!r})"
        )
    return metadata, exported


def _precision(exported: onnx.ModelProto) -> str:
    """What the graph computes in, by its nodes and types."""
    nodes = [*exported.graph.node, *(node for function in exported.functions for node in function.node)]
    if any(node.op_type in _INTEGER_OPERATORS or node.op_type.startswith("QLinear") for node in nodes):
        float8 = any(tensor.data_type in _FLOAT8 for tensor in exported.graph.initializer)
        return "fp8" if float8 else "int8"
    if any(tensor.data_type == onnx.TensorProto.BFLOAT16 for tensor in exported.graph.initializer):
        return "bf16"
    return "fp16" if computes_in_half(exported) else "fp32"


def _batch(exported: onnx.ModelProto) -> int | None:
    first = exported.graph.input[0].type.tensor_type.shape.dim
    return first[0].dim_value or None if first else None
