"""References, photos to label, and a labeller that needs no model."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from commands import Command, runner
from labeller import NAMES, StandIn
from labels import full_annotations, make_photos
from PIL import Image

from cats.core.images import MAX_PIXELS
from cats.labelling import cli
from cats.labelling.formats import write_annotations


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``refs/refs.json`` with its photos, and ``photos/`` with two ducks, a car and something else."""
    monkeypatch.chdir(tmp_path)
    make_photos(tmp_path / "refs")
    write_annotations(full_annotations(tmp_path / "refs"), tmp_path / "refs" / "refs.json")
    (tmp_path / "photos").mkdir()
    for seed, name in enumerate(NAMES):
        noise = np.random.default_rng(seed).integers(0, 256, (60, 90, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "photos" / name)
    return tmp_path


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    made = StandIn()
    monkeypatch.setattr(cli, "label_photos", made)
    matcher = SimpleNamespace(max_pixels=MAX_PIXELS)
    monkeypatch.setattr(cli, "open_for_labelling", lambda *_, **__: contextlib.nullcontext(matcher))
    monkeypatch.setattr(cli, "note_model", lambda *_: None)
    return made


@pytest.fixture
def label(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Command:
    return runner(cli.main, "cats label", monkeypatch, capsys)
