"""Where OpenVINO computes in bfloat16: a model in parts, each with a precision of its own.

OpenVINO takes one precision for a whole model and leaves only what follows the last large product in float32. Eight
bits of mantissa are enough inside the aggregator. They are not for the scores that the soft-argmax tells apart at a
temperature of 0.02, nor for depthwise convolutions, whose sums are too short for their rounding errors to cancel. So
the graph is cut in front of the aggregator and in front of the soft-argmax.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

AGGREGATOR, SOFT_ARGMAX = "decoder", "soft_argmax"
"""First part of the names of nodes, which are paths of modules."""


def precision_parts(ov: Any, model: Any, *, aggregator_only: bool = False) -> Iterator[tuple[Any, str]]:
    """A model for bfloat16 as models to run one after the other, each with ``fp32`` or ``bf16``.

    Inputs and outputs of a part go by name: what is no input of the whole model is an output of an earlier part.

    - Up to the cost volume: bf16, but fp32 with ``aggregator_only``, where the backbone has depthwise convolutions, or
      where there is none because features are given. An encoder by itself ends here.
    - The aggregator, up to the refined scores: bf16.
    - Soft-argmax and what follows: fp32.

    Args:
        ov: the package.
        model: an ``ov.Model`` with the names of an exported file; it is taken apart.
        aggregator_only: leave everything else in fp32.
    """
    parts = []
    for module in (SOFT_ARGMAX, AGGREGATOR):  # from the end
        model, part = _cut(ov, model, module)
        parts.append(part)
    soft_argmax, aggregator = parts
    yield model, "fp32" if aggregator_only or not _tolerates_bf16(model) else "bf16"
    yield from ((part, precision) for part, precision in ((aggregator, "bf16"), (soft_argmax, "fp32")) if part)


def _tolerates_bf16(model: Any) -> bool:
    convolutions = [node for node in model.get_ops() if node.get_type_name() in ("Convolution", "GroupConvolution")]
    # Weights of a grouped convolution are (groups, outputs, inputs, height, width), the middle two of each group.
    depthwise = any(
        node.get_type_name() == "GroupConvolution" and node.input(1).get_partial_shape()[2].get_length() == 1
        for node in convolutions
    )
    return bool(convolutions) and not depthwise


def _cut(ov: Any, model: Any, module: str) -> tuple[Any, Any | None]:
    """The model in front of a module, and the module with all that follows; None where there is no such module."""
    varying: set[str] = set()  # what depends on an input; the rest is folded, and belongs to whoever reads it
    behind: dict[str, Any] = {}
    for node in model.get_ordered_ops():
        name = node.get_friendly_name()
        sources = {source.get_node().get_friendly_name() for source in node.input_values()}
        if node.get_type_name() == "Parameter" or sources & varying:
            varying.add(name)
        if sources & behind.keys() or (name in varying and name.startswith((f"{module}/", f"{module}."))):
            behind[name] = node
    if not behind:
        return model, None
    results = [node for node in model.get_results() if node.get_friendly_name() not in behind]
    parameters: dict[str, Any] = {}
    for node in behind.values():
        for port in node.inputs():
            source = port.get_source_output()
            origin = source.get_node()
            if origin.get_friendly_name() in behind or origin.get_friendly_name() not in varying:
                continue
            name = min(source.get_names(), default=f"{origin.get_friendly_name()}:{source.get_index()}")
            if name not in parameters:
                parameters[name] = ov.opset13.parameter(source.get_partial_shape(), source.get_element_type(), name)
                parameters[name].output(0).set_names({name})
                if origin.get_type_name() != "Parameter":
                    source.get_tensor().set_names({name})
                    results.append(ov.opset13.result(source))
            port.replace_source_output(parameters[name].output(0))
    tail = [node for node in model.get_results() if node.get_friendly_name() in behind]
    return (
        ov.Model(results, _used(model.get_parameters(), results), module),
        ov.Model(tail, list(parameters.values()), module),
    )


def _used(parameters: list[Any], results: list[Any]) -> list[Any]:
    """Those parameters on which the results depend."""
    seen: set[str] = set()
    waiting = list(results)
    while waiting:
        node = waiting.pop()
        if node.get_friendly_name() not in seen:
            seen.add(node.get_friendly_name())
            waiting.extend(source.get_node() for source in node.input_values())
    return [node for node in parameters if node.get_friendly_name() in seen]
