"""The kernels of ``cats::Correlation`` compiled ahead of time, without a GPU, ready to be launched by TensorRT."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import triton

from cats.core.errors import BackendError
from cats.export.kernels.triton import BLOCKS, FILTERED, Blocks, filter_kernel, scores_constants, scores_kernel

CAPABILITY = 80
"""Compute capability that :func:`compile_kernels` aims at; drivers translate its PTX for every later one."""

HOPPER = 90
"""Has matrix instructions of its own, which no other capability runs: in float16 the code for it takes 0.43 of the time
of the code for 8.0 on one pair and 0.28 on 32, in float32 the same."""


@dataclass(frozen=True)
class CompiledKernel:
    """A kernel that was compiled for known levels, ready to be launched by TensorRT.

    Attributes:
        name: of the entry point in ``ptx``.
        ptx: its parameters are pointers alone: inputs, then outputs, in the order of the kernel's arguments.
        grid: blocks along x and y; there is one along z for each pair of a batch.
        threads: of a block.
        shared_bytes: of dynamic shared memory.
    """

    name: str
    ptx: str
    grid: tuple[int, int]
    threads: int
    shared_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self), "grid": list(self.grid)}


def compile_kernels(
    channels: Sequence[int], cells: int, *, half: bool, capability: int = CAPABILITY
) -> tuple[CompiledKernel, CompiledKernel]:
    """Compile :func:`scores_kernel` and :func:`filter_kernel`, without a GPU.

    Args:
        channels: C_l of each level.
        cells: N.
        half: features in float16, else float32.
        capability: 80 for compute capability 8.0, and so on.
    """
    kind, blocks = ("*fp16", BLOCKS[torch.float16]) if half else ("*fp32", BLOCKS[torch.float32])
    features = (kind,) * len(channels)
    buffers = dict.fromkeys(("scores", "row_maxima", "column_maxima"), "*fp32")
    scores = compile_kernel(
        scores_kernel,
        {"a": features, "b": features, **buffers},
        scores_constants(channels, cells, blocks),
        blocks,
        capability,
    )
    filtered = compile_kernel(
        filter_kernel,
        {**buffers, "volume": "*fp32"},
        {"LEVELS": len(channels), "CELLS": cells, "ROWS": blocks.rows, "COLUMNS": blocks.columns, "TILE": FILTERED},
        blocks,
        capability,
    )
    tiles, parts = (triton.cdiv(cells, size) for size in (blocks.rows, FILTERED))  # a row has as many as a column
    grids = (tiles**2, len(channels)), (parts**2, len(channels))
    return _ready(scores, 2 * len(channels) + 3, grids[0]), _ready(filtered, 4, grids[1])


def compile_kernel(
    kernel: Any, signature: dict[str, Any], constants: dict[str, Any], blocks: Blocks, capability: int
) -> Any:
    """What Triton makes of one kernel, without a GPU: ``signature`` names types, ``constants`` values of arguments."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    paths: list[tuple[int, ...]] = []  # of the pointers among the arguments
    for index, kind in enumerate(signature.values()):
        paths += [(index, part) for part in range(len(kind))] if isinstance(kind, tuple) else [(index,)]
    aligned = {path: [["tt.divisibility", 16]] for path in paths}  # as every allocator of GPU memory gives
    signature = {**signature, **dict.fromkeys(constants, "constexpr")}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=blocks.options)


def _ready(compiled: Any, pointers: int, grid: tuple[int, int]) -> CompiledKernel:
    metadata = compiled.metadata
    text = compiled.asm["ptx"]
    ptx = _without_scratch(text if isinstance(text, str) else text.decode(), pointers)
    return CompiledKernel(metadata.name, ptx, grid, 32 * metadata.num_warps, metadata.shared)


def _without_scratch(ptx: str, pointers: int) -> str:
    """PTX whose entry takes ``pointers`` parameters; Triton adds pointers to scratch memory that its own launcher fills
    and no other does.

    Raises:
        BackendError: the kernel uses such memory, or has other parameters than expected.
    """
    start = ptx.index("(", ptx.index(".entry"))
    end = ptx.index(")", start)
    parameters = [text.strip() for text in ptx[start + 1 : end].split(",")]
    names = [re.split(r"\s+", text)[-1] for text in parameters]
    used = [name for name in names[pointers:] if re.search(rf"\b{re.escape(name)}\b", ptx[end:])]
    if used or len(names) < pointers or not all(".u64" in text or ".b64" in text for text in parameters[:pointers]):
        raise BackendError(f"triton {triton.__version__} compiled a kernel with parameters {', '.join(names)}")
    return f"{ptx[: start + 1]}\n\t" + ",\n\t".join(parameters[:pointers]) + f"\n{ptx[end:]}"
