"""What a graph costs and what the machine can do: GFLOP, bytes, measured peaks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np


def graph_cost(path: str | Path) -> dict[str, float]:
    """Arithmetic and memory traffic of one pair.

    Args:
        path: ONNX file; its free batch is taken as one.

    Returns:
        ``gflop``: of convolutions and matrix products, a multiply-add counted as two. ``weights_mb``: of all constants.
        ``unfused_mb``: what all operators read and write together if each went to memory, float32 or as typed.
    """
    import onnx
    from onnx import inliner, shape_inference

    model = inliner.inline_local_functions(onnx.load(path))
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_param"):
                dim.dim_value = 1
    del model.graph.value_info[:]  # they name the free batch
    for value in model.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_param"):
                dim.dim_value = 1
    model = shape_inference.infer_shapes(model, data_prop=True)
    shapes: dict[str, tuple[int, ...]] = {}
    sizes: dict[str, int] = {}
    for value in [*model.graph.value_info, *model.graph.input, *model.graph.output]:
        kind = value.type.tensor_type
        shapes[value.name] = tuple(dim.dim_value or 1 for dim in kind.shape.dim)
        sizes[value.name] = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize if kind.elem_type else 4
    weights = 0
    for constant in model.graph.initializer:
        shapes[constant.name] = tuple(constant.dims)
        sizes[constant.name] = onnx.helper.tensor_dtype_to_np_dtype(constant.data_type).itemsize
        weights += int(np.prod(constant.dims)) * sizes[constant.name]
    flop, traffic = 0, 0
    for node in model.graph.node:
        traffic += sum(int(np.prod(shapes[x])) * sizes[x] for x in [*node.input, *node.output] if x in shapes)
        out = int(np.prod(shapes.get(node.output[0], (0,))))
        if node.op_type == "Conv":
            flop += 2 * out * int(np.prod(shapes[node.input[1]][1:]))
        elif node.op_type in ("MatMul", "Gemm"):
            flop += 2 * out * shapes.get(node.input[0], (0,))[-1]
    return {"gflop": flop / 1e9, "weights_mb": weights / 1e6, "unfused_mb": traffic / 1e6}


def machine_peaks(threads: int, size: int = 2048, repeats: int = 15, seconds: float = 5) -> dict[str, Any]:
    """Measured GFLOP/s of a matrix product, best of a few, in float32 and bfloat16, and memory GB/s of a copy.

    By PyTorch where it is installed, else float32 by numpy with the threads that its library takes. What is slow, as
    bfloat16 on CPUs without its instructions, is measured on smaller matrices, and for so many seconds at most.
    """

    def best(call: Any, work: float) -> float:
        call()
        rates: list[float] = []
        until = time.perf_counter() + seconds
        while len(rates) < repeats and (not rates or time.perf_counter() < until):
            start = time.perf_counter()
            call()
            rates.append(work / (time.perf_counter() - start) / 1e9)
        return max(rates)

    def product(x: Any) -> float:
        few = x[: size // 8, : size // 8]
        rate = best(lambda: few @ few, 2.0 * len(few) ** 3)
        return best(lambda: x @ x, flop) if flop < rate * 1e9 * seconds else rate

    flop = 2.0 * size**3
    source = np.ones(32 << 20, np.float32)
    target = np.empty_like(source)
    copy = best(lambda: np.copyto(target, source), 2.0 * source.nbytes)
    try:
        import torch
    except ImportError:
        x = np.ones((size, size), np.float32)
        return {"fp32_gflops": product(x), "bf16_gflops": None, "copy_gbs": copy, "by": "numpy"}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        y = torch.ones(size, size)
        rates = [product(y), product(y.bfloat16())]
    finally:
        torch.set_num_threads(before)
    return {"fp32_gflops": rates[0], "bf16_gflops": rates[1], "copy_gbs": copy, "by": f"torch {torch.__version__}"}
