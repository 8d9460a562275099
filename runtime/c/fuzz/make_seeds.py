"""Writes the fuzzer's seeds from the tests' tiny models: ``python runtime/c/fuzz/make_seeds.py`` in the repository.

Byte 0 of a seed is what it is: 0 metadata, 1 model, 2 image, 3 arguments, 4 split model.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2] / "tests"))

from split_onnx import tiny_split  # noqa: E402
from tiny_onnx import tiny_metadata, tiny_model  # noqa: E402


def _model(model, kind: str) -> bytes:  # type: ignore[no-untyped-def]
    made = type(model).FromString(model.SerializeToString())
    entry = made.metadata_props.add()
    entry.key, entry.value = "cats", tiny_metadata(kind=kind).to_json()
    return b"\x01" + made.SerializeToString()


def _split(encoder, matcher) -> bytes:  # type: ignore[no-untyped-def]
    halves = [_model(encoder, "encoder")[1:], _model(matcher, "matcher")[1:]]
    return b"\x04" + struct.pack("<I", len(halves[0])) + b"".join(halves)


def seeds() -> dict[str, bytes]:
    """Name -> content."""
    encoder, matcher = tiny_split()
    pixels = np.random.default_rng(0).integers(0, 256, 40 * 30 * 4, np.uint8).tobytes()
    view = struct.pack("<QQiiqII", 40, 0, 32, 24, 0, 1, 0)
    points = struct.pack("<8d", 0, 0, 3.5, 4.5, 31.5, 23.5, -0.5, 9)
    tail = struct.pack("<QQ", 0, 512) + points + struct.pack("<4i", 10, 10, 20, 20)
    odd = '{"kind": "p\\u0061ir", "grid": [1e1, -0.5e-3], "x": [[[{}]], "\\ud83d\\ude00"], "format": 2}'
    mapping = {"confidence": [0.1, 0.5, 0.5, 0.9], "probability": [0.0, 0.25, 0.5, 1.0]}
    result = {
        "metadata-pair": b"\0" + tiny_metadata().to_json().encode(),
        "metadata-calibrated": b"\0"
        + tiny_metadata(calibration={"confidence": {"mapping": mapping}}).to_json().encode(),
        "metadata-odd": b"\0" + odd.encode(),
        "model-pair": _model(tiny_model(), "pair"),
        "model-encoder": _model(encoder, "encoder"),
        "model-matcher": _model(matcher, "matcher"),
    }
    result["split"] = _split(encoder, matcher)
    encoder.graph.output[1].CopyFrom(encoder.graph.output[0])
    result["split-twice"] = _split(encoder, matcher)  # one output twice, two inputs that nothing is for
    for number, gap in ((1, 0), (3, 5), (5, -80)):
        result[f"image-{number}"] = b"\x02" + struct.pack("<HHBh", 40, 30, number, gap) + pixels
    for choice in (0x00, 0x07, 0x9F, 0xFF):
        result[f"arguments-{choice:02x}"] = (
            bytes([3, choice]) + view + view + tail + struct.pack("<QQii", 80, 0, 0, 1) * 3
        )
    return result


if __name__ == "__main__":
    folder = HERE / "seeds"
    folder.mkdir(exist_ok=True)
    for name, content in seeds().items():
        (folder / name).write_bytes(content)
