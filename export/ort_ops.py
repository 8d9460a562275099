"""Operators that only ONNX Runtime has, for files exported for it alone (``cats-export --for onnxruntime``).

Each is a torch custom op with its eager definition and a translation to one node of the domain ``com.microsoft``:
attention that never writes the attention weights to memory, and residual sum with LayerNorm in one pass.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

DOMAIN = "com.microsoft"


@torch.library.custom_op("cats::multi_head_attention", mutates_args=())
def multi_head_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, heads: int) -> Tensor:
    """Attention of queries, keys and values (S, T, D), to which their biases (3 D) are still to be added."""
    parts = [x + b for x, b in zip((q, k, v), bias.chunk(3), strict=True)]
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in parts)
    weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2).contiguous()


@multi_head_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, heads: int) -> Tensor:
    return torch.empty_like(q)


@torch.library.custom_op("cats::skip_layer_norm", mutates_args=())
def skip_layer_norm(
    x: Tensor, skip: Tensor, weight: Tensor, bias: Tensor, offset: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """LayerNorm of ``x + skip + offset``, and that sum; x and skip (S, T, D), the others (D)."""
    total = x + skip + offset
    return F.layer_norm(total, total.shape[-1:], weight, bias, epsilon), total


@skip_layer_norm.register_fake
def _(x: Tensor, skip: Tensor, weight: Tensor, bias: Tensor, offset: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


def translation_table() -> dict[Any, Any]:
    """For torch's exporter: custom op -> node."""
    import onnx
    import onnxscript

    def operator(name: str, inputs: int, outputs: int) -> Any:
        parameter = onnx.defs.OpSchema.FormalParameter
        schema = onnx.defs.OpSchema(
            name,
            DOMAIN,
            1,
            inputs=[parameter(f"input_{i}", "tensor(float)") for i in range(inputs)],
            outputs=[parameter(f"output_{i}", "tensor(float)") for i in range(outputs)],
            attributes=[
                onnx.defs.OpSchema.Attribute("num_heads", onnx.defs.OpSchema.AttrType.INT, "", required=False),
                onnx.defs.OpSchema.Attribute("epsilon", onnx.defs.OpSchema.AttrType.FLOAT, "", required=False),
            ],
        )
        return onnxscript.values.Op(onnxscript.values.Opset(DOMAIN, 1), name, schema)

    attend = operator("MultiHeadAttention", 4, 1)
    skip_norm = operator("SkipLayerNormalization", 5, 4)

    def translate_attention(q: Any, k: Any, v: Any, bias: Any, heads: int) -> Any:
        return attend(q, k, v, bias, num_heads=heads)

    def translate_norm(x: Any, skip: Any, weight: Any, bias: Any, offset: Any, epsilon: float) -> Any:
        normed, _, _, total = skip_norm(x, skip, weight, bias, offset, epsilon=epsilon)
        return normed, total

    return {
        torch.ops.cats.multi_head_attention.default: translate_attention,
        torch.ops.cats.skip_layer_norm.default: translate_norm,
    }
