"""The operator that only ONNX Runtime has, for files exported for it alone (``cats-export --for onnxruntime``).

A torch custom op with its eager definition and a translation to one node of the domain ``com.microsoft``: attention
that never writes the attention weights to memory. Residual sum and LayerNorm in one node (SkipLayerNormalization) are
not here: on a CPU that takes four times as long as the two.
"""

from __future__ import annotations

from typing import Any

import torch
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


def translation_table() -> dict[Any, Any]:
    """For torch's exporter: custom op -> node."""
    import onnx
    import onnxscript

    parameter, attribute = onnx.defs.OpSchema.FormalParameter, onnx.defs.OpSchema.Attribute
    schema = onnx.defs.OpSchema(
        "MultiHeadAttention",
        DOMAIN,
        1,
        inputs=[parameter(name, "tensor(float)") for name in ("query", "key", "value", "bias")],
        outputs=[parameter("output", "tensor(float)")],
        attributes=[attribute("num_heads", onnx.defs.OpSchema.AttrType.INT, "", required=False)],
    )
    attend = onnxscript.values.Op(onnxscript.values.Opset(DOMAIN, 1), schema.name, schema)

    def translate(q: Any, k: Any, v: Any, bias: Any, heads: int) -> Any:
        return attend(q, k, v, bias, num_heads=heads)

    return {torch.ops.cats.multi_head_attention.default: translate}
