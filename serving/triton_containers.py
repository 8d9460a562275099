"""Which of NVIDIA's Triton containers holds which TensorRT and ONNX Runtime.

An engine runs on the TensorRT that built it only, so a repository has to name its container. NVIDIA's support matrix is
a page, not data: this table holds the releases whose TensorRT was found in public records of the containers by November
2026, of the versions that cats-build knows. NVIDIA's containers of one tag, of Triton and of TensorRT, hold the same
one; ``TRT_VERSION`` in their environment names it.
"""

from __future__ import annotations

TENSORRT = {
    "10.13.3": "25.10",
    "10.14.1": "25.12",
    "10.16.1": "26.04",
    "11.0.0": "26.06",
    "11.1.0": "26.07",
    "11.2.1": "26.08",
}
"""TensorRT (major.minor.patch) to a release of Triton that holds it."""

NEWEST = "26.08"
"""Newest release in the table; holds ONNX Runtime 1.28."""

ONNX_SINCE = "24.12"
"""Oldest release whose ONNX Runtime (1.20) runs exported models, up to operator set :data:`ONNX_OPSET`."""

ONNX_OPSET = 21


def find_container(version: str, *, newer: bool = False) -> str | None:
    """Release of Triton, such as ``26.07``, whose TensorRT runs an engine; None where the table has none.

    Args:
        version: of the TensorRT that built the engine, such as ``11.1.0.106``.
        newer: the engine is version-compatible: newer releases of the same major version run it too.
    """
    release = _release(version)
    if newer:
        fitting = [key for key in TENSORRT if _release(key)[0] == release[0] and _release(key) >= release]
        return TENSORRT[max(fitting, key=_release)] if fitting else None
    return TENSORRT.get(".".join(map(str, release)))


def _release(version: str) -> tuple[int, ...]:
    """Major, minor and patch; the build number is one for each, and pip's ``.post1`` is the same library."""
    return tuple(int(part) if part.isdigit() else 0 for part in version.split(".")[:3])
