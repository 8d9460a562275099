"""The card of the shipped model keeps all its parts when it is written again."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from cats.assets import asset
from cats.benchmarks import ship_tiny
from cats.core.errors import ModelFileError
from cats.core.metadata import read_onnx_metadata, write_metadata

COMPARED = SimpleNamespace(p99_px=1.9, pairs=16)


@pytest.fixture
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("cats-tiny.md", "cats-tiny.onnx", "cats-tiny.int8.onnx"):
        shutil.copyfile(asset(name), tmp_path / name)
    monkeypatch.setattr(ship_tiny, "ASSETS", tmp_path)
    monkeypatch.setattr(ship_tiny, "drift_elsewhere", lambda *_: COMPARED)
    return tmp_path


def headings(card: str) -> list[str]:
    return re.findall(r"^## (\w+)", card, re.MULTILINE)


def test_the_part_on_8_bits_is_written_anew_and_the_others_stay(assets: Path) -> None:
    card = assets / "cats-tiny.md"
    before = card.read_text()
    ship_tiny.rewrite_int8()
    after = card.read_text()
    assert headings(after) == headings(before) == headings(ship_tiny.CARD.replace("{int8}", ship_tiny.INT8))
    assert "36 of 73 modules in int8" in after
    assert "by 1.98 px (99th percentile, at 256 x 256) on 11" in after.replace("\n", " ")
    assert "1.90 px on 16 pairs" in after.replace("\n", " ")
    assert after.partition("## What its")[2] == before.partition("## What its")[2]
    assert after.partition("## In 8 bits")[0] == before.partition("## In 8 bits")[0]
    ship_tiny.rewrite_int8()
    assert card.read_text() == after
    card.write_text(before.partition("## In 8 bits")[0] + "## What its" + before.partition("## What its")[2])
    ship_tiny.rewrite_int8()
    assert card.read_text() == after


def test_an_8_bit_file_of_other_weights_is_refused(assets: Path) -> None:
    file = assets / "cats-tiny.int8.onnx"
    write_metadata(file, read_onnx_metadata(file).with_(weights_sha256="0" * 64), file)
    with pytest.raises(ModelFileError, match="quantize it again"):
        ship_tiny.rewrite_int8()
