"""The runtime calls only what TensorRT 10.12, 10.16, 11.4 and TensorRT-RTX have, with arguments that they take."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent / "tensorrt_api"
sys.path.insert(0, str(HERE))

from calls import SOURCES, Call, calls_of  # noqa: E402
from generate import describe  # noqa: E402

RELEASES = ("tensorrt-10.12", "tensorrt-10.16", "tensorrt-11.4", "tensorrt-rtx")
RTX_ONLY = {
    "ComputeCapability",
    "CudaGraphStrategy",
    "CudaGraphStrategy.WHOLE_GRAPH_CAPTURE",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
    "IRuntimeConfig.cuda_graph_strategy",
}


def listed(release: str) -> dict[str, Any]:
    return json.loads((HERE / f"{release}.json").read_text("utf-8"))


def problems(source: str, names: dict[str, list[str] | None]) -> list[str]:
    """Uses of TensorRT in a source that a release does not have, or has with other arguments."""
    found = []
    for call in calls_of(source):
        if call.name not in names:
            found.append(f"line {call.line}: {call.name} is not in the list")
        elif names[call.name] is None:
            found.append(f"line {call.line}: there is no {call.name}")
        elif call.positional is not None and not any(fits(call, text) for text in names[call.name] or []):
            found.append(f"line {call.line}: {call.name} takes other arguments: {names[call.name]}")
    return found


def fits(call: Call, signature: str) -> bool:
    """Whether a call's arguments fit a signature such as ``f(self: T, a: int, b: str = None) -> bool``."""
    match = re.match(r"\w+\((.*)\)(?: -> .*)?$", signature)
    if match is None:
        return False
    depth, parts, start = 0, [], 0
    for at, character in enumerate(match[1]):
        depth += (character in "([{<") - (character in ")]}" or (character == ">" and match[1][at - 1] != "-"))
        if character == "," and depth == 0:
            parts.append(match[1][start:at])
            start = at + 1
    parts = [part.strip() for part in [*parts, match[1][start:]] if part.strip()]
    names = {part.split(":")[0].split("=")[0].strip(): "=" in part for part in parts}
    names.pop("self", None)
    given = [*list(names)[: call.positional], *call.keywords]
    return (
        (call.positional or 0) <= len(names)
        and len(given) == len(set(given))
        and set(given) <= set(names)
        and all(optional or name in given for name, optional in names.items())
    )


@pytest.mark.parametrize("release", RELEASES)
def test_code_calls_only_what_a_release_has(release: str) -> None:
    names = listed(release)["names"]
    found = [problem for source in SOURCES for problem in problems(source.read_text("utf-8"), names)]
    missing = {name for name, signatures in names.items() if signatures is None}
    assert missing == (set() if release == "tensorrt-rtx" else RTX_ONLY)
    allowed = {name for name in missing if any(problem.endswith(f"there is no {name}") for problem in found)}
    assert [p for p in found if not any(p.endswith(f"there is no {name}") for name in allowed)] == []


@pytest.mark.parametrize("release", RELEASES)
def test_lists_hold_nothing_that_is_not_called(release: str) -> None:
    called = {call.name for source in SOURCES for call in calls_of(source.read_text("utf-8"))}
    assert set(listed(release)["names"]) == called
    assert len(called) > 30


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("builder.build_cuda_engine(network)", "not in the list"),
        ("self._engine.get_binding_name(0)", "not in the list"),
        ("config.set_flag(trt.BuilderFlag.FP16)", "BuilderFlag.FP16 is not in the list"),
        ("builder.build_serialized_network(network)", "takes other arguments"),
        ("context.execute_async_v3(stream, 0)", "takes other arguments"),
        ("builder.create_network(flag=1)", "takes other arguments"),
        ("config.get_timing_cache().serialise()", "not in the list"),
    ],
)
def test_other_names_and_arguments_are_found(source: str, problem: str) -> None:
    assert problem in " ".join(problems(source, listed("tensorrt-11.4")["names"]))


def test_the_installed_tensorrt_rtx_is_the_listed_one() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    document = listed("tensorrt-rtx")
    if trt.__version__ != document["version"]:
        pytest.skip(f"TensorRT-RTX {trt.__version__} is installed, {document['version']} is listed")
    assert describe(trt, list(document["names"])) == document["names"]
