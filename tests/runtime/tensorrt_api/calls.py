"""Which TensorRT names a source file calls, read from its syntax tree.

TensorRT's objects are known by the names of the variables that hold them, which are the same throughout the runtime.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

_RUNTIME = Path(__file__).resolve().parents[3] / "runtime"
SOURCES = (_RUNTIME / "tensorrt" / "engine.py", _RUNTIME / "backends" / "tensorrt.py")

MODULE = ""
RECEIVERS = {
    "trt": MODULE,
    "_trt": MODULE,
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "parser": "OnnxParser",
    "error": "ParserError",
    "profile": "IOptimizationProfile",
    "tensor": "ITensor",
    "cache": "ITimingCache",
    "_runtime": "Runtime",
    "_engine": "ICudaEngine",
    "context": "IExecutionContext",
    "_context": "IExecutionContext",
    "runtime_config": "IRuntimeConfig",
    "refitter": "Refitter",
    "weights": "OnnxParserRefitter",
}
"""Variable or attribute -> TensorRT class; the library itself is the empty string."""

RETURNS = {"IBuilderConfig.get_timing_cache": "ITimingCache"}
"""Methods whose result is used without being given a name."""

FLAGS_BY_NAME = ("VERSION_COMPATIBLE", "STRIP_PLAN", "REFIT")
"""Members of BuilderFlag that the builder names as text."""


@dataclass(frozen=True)
class Call:
    """One use of a TensorRT name.

    Attributes:
        name: dotted, without the module, such as ``Builder.create_network``.
        positional: number of positional arguments; None where the name is not called.
        keywords: names of keyword arguments.
        line: in the source.
    """

    name: str
    positional: int | None
    keywords: tuple[str, ...]
    line: int


def calls_of(source: str) -> list[Call]:
    """All uses of TensorRT in a Python source."""
    finder = _Finder()
    finder.visit(ast.parse(source))
    return finder.calls


class _Finder(ast.NodeVisitor):
    def __init__(self) -> None:
        self.calls: list[Call] = []

    def visit_Call(self, node: ast.Call) -> None:
        name = self._name(node.func)
        if name is not None and not isinstance(node.func, ast.Name):
            keywords = tuple(keyword.arg or "**" for keyword in node.keywords)
            self.calls.append(Call(name, len(node.args), keywords, node.lineno))
            if isinstance(node.func, ast.Attribute):
                self.visit(node.func.value)
        else:
            self.visit(node.func)
        self._named_as_text(node)
        for argument in [*node.args, *(keyword.value for keyword in node.keywords)]:
            self.visit(argument)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        name = self._name(node)
        if name is not None and node.attr not in RECEIVERS:
            self.calls.append(Call(name, None, (), node.lineno))
        self.visit(node.value)

    def visit_Constant(self, node: ast.Constant) -> None:
        if node.value in FLAGS_BY_NAME:
            self.calls.append(Call(f"BuilderFlag.{node.value}", None, (), node.lineno))

    def _named_as_text(self, node: ast.Call) -> None:
        """``hasattr(config, "name")``."""
        if isinstance(node.func, ast.Name) and node.func.id in ("hasattr", "getattr") and len(node.args) > 1:
            holder, name = self._type(node.args[0]), node.args[1]
            if holder is not None and isinstance(name, ast.Constant):
                self.calls.append(Call(_join(holder, str(name.value)), None, (), node.lineno))

    def _name(self, node: ast.AST) -> str | None:
        """Dotted TensorRT name of an attribute, or None."""
        if not isinstance(node, ast.Attribute):
            return None
        holder = self._type(node.value)
        return None if holder is None or node.attr.startswith("__") else _join(holder, node.attr)

    def _type(self, node: ast.AST) -> str | None:
        """TensorRT class or namespace that an expression is, or None."""
        terminal = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None
        if terminal in RECEIVERS:
            return RECEIVERS[terminal]
        if isinstance(node, ast.Call):
            return RETURNS.get(self._name(node.func) or "")
        return self._name(node)


def _join(holder: str, name: str) -> str:
    return f"{holder}.{name}" if holder else name
