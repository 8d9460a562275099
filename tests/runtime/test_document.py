"""The JSON document of a match."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from cats.runtime import Match
from cats.runtime.document import matches_document


def test_the_document_is_as_designed() -> None:
    match = Match(
        flow=np.full((2, 16, 16), 1.0, np.float32),
        confidence=np.full((16, 16), 0.25, np.float32),
        size_a=(160, 80),
        size_b=(320, 80),
        times={"model": 1.23456},
    )
    document = matches_document(match, [[9.5, 4.5]], a="a.jpg", b=Path("b.jpg"), model={"file": "m.onnx"})
    assert json.loads(json.dumps(document)) == {
        "a": "a.jpg",
        "b": "b.jpg",
        "size_a": [160, 80],
        "size_b": [320, 80],
        "model": {"file": "m.onnx"},
        # (9.5 + 0.5) / 10 - 0.5 = cell 0.5, plus 1; in b a cell is 20 wide: (1.5 + 0.5) * 20 - 0.5
        "matches": [{"a": [9.5, 4.5], "b": [39.5, 9.5], "confidence": 0.25}],
        "time_ms": {"model": 1.235},
    }
