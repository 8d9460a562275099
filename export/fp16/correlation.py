"""``cats::Correlation`` with its product in float16.

The float32 definition multiplies the features as they come and scales the result by the inverse norms. In float16 that
product would overflow (1024 channels of size 10 make 100 000), so here the norm comes first: features of unit length,
computed in float32, rounded to float16, give a product between -1 and 1, which tensor cores compute with float32 sums.
The mutual filter is in float32 as before. The product is most of the work of the operator.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper


def convert_correlation(function: onnx.FunctionProto) -> onnx.FunctionProto:
    """Convert the definition of :func:`cats.export.graph.correlation.correlation_function` to a product in float16.

    Args:
        function: with inputs ``a_0 .. a_{L-1}, b_0 .. b_{L-1}``; its constants are taken over.

    Returns:
        A function of the same name for inputs (B, C_l, N) of either type, output ``volume`` (B, L, N, N) float32.
    """
    nodes = [node for node in function.node if node.op_type == "Constant"]

    def add(operator: str, *inputs: str, output: str | None = None, **attributes: object) -> str:
        name = output or f"{operator.lower()}_{len(nodes)}"
        nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    units = {}
    for feature in function.input:
        x = add("Cast", feature, to=TensorProto.FLOAT)
        squares = add("ReduceSum", add("Mul", x, x), "one", keepdims=1)
        inverse = add("Reciprocal", add("Sqrt", add("Add", squares, "epsilon")))
        units[feature] = add("Cast", add("Mul", x, inverse), to=TensorProto.FLOAT16)
    products = []
    for level in range(len(function.input) // 2):
        rows = add("Transpose", units[f"a_{level}"], perm=[0, 2, 1])
        products.append(add("Unsqueeze", add("MatMul", rows, units[f"b_{level}"]), "one"))
    corr = add("Cast", add("Concat", *products, axis=1), to=TensorProto.FLOAT)
    ratios = []
    for axis in ("last", "columns"):
        maximum = add("ReduceMax", corr, axis, keepdims=1)
        guarded = add("Where", add("Equal", maximum, "zero"), "tiny", maximum)
        ratios.append(add("Mul", corr, add("Reciprocal", guarded)))
    add("Mul", add("Mul", corr, ratios[0]), ratios[1], output="volume")
    return helper.make_function(
        function.domain,
        function.name,
        list(function.input),
        list(function.output),
        nodes,
        list(function.opset_import),
        doc_string=function.doc_string,
    )
