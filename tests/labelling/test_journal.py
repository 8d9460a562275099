"""A damaged journal costs its results, never the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from cats.labelling.journal import Journal
from cats.labelling.label import LabelledPhoto


@pytest.mark.parametrize(
    "change", [{"visibility": [10**30]}, {"size": ["x", 1]}, {"points": 5}, {"key": None}, {"key": 7}, {"box": [1]}]
)
def test_a_damaged_line_is_left_aside(tmp_path: Path, change: dict[str, object]) -> None:
    photos = [tmp_path / "a.png", tmp_path / "b.png"]
    output, run = tmp_path / "labels.json", {"references": "0"}
    journal = Journal(output, run)
    for photo in photos:
        Image.new("RGB", (40, 40)).save(photo)
        journal.add(LabelledPhoto(photo, (40, 40), "duck"), "duck")
    journal.close()
    first, damaged, whole = journal.path.read_text().splitlines()
    journal.path.write_text("\n".join((first, json.dumps({**json.loads(damaged), **change}), whole)) + "\n")
    again = Journal(output, run)
    assert again.get(photos[0], "duck") is None
    assert again.get(photos[1], "duck") is not None
