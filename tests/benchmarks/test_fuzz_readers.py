"""The fuzzed readers get what they understand: a seed refused at its first bytes would try nothing behind them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from cats.benchmarks.studies.fuzz_readers import READERS, mutate
from cats.core.errors import CatsError


@pytest.mark.parametrize("name", list(READERS))
def test_every_kind_of_seed_is_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    reader = READERS[name]
    seeds = reader.seeds()
    understood = set()
    for number, (suffix, data) in enumerate(seeds):
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(data)
        try:
            reader.read(path)
        except CatsError:
            continue
        understood.add(suffix)
    assert understood == {suffix for suffix, _ in seeds}


@pytest.mark.parametrize("name", ["points", "metadata", "ranges", "labels", "journal", "features"])
def test_mutations_are_read_or_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    reader = READERS[name]
    seeds = reader.seeds()
    refused = []
    for number in range(40):
        chance = random.Random(f"test {name} {number}")
        suffix, seed = chance.choice(seeds)
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(mutate(seed, [data for _, data in seeds], chance))
        try:
            reader.read(path)
        except CatsError as error:
            refused.append(str(error))
    assert refused or name == "journal"  # which leaves aside what it cannot read
    assert not [text for text in refused if "\n" in text]
