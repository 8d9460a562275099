"""The seam of cats.core.protocols: everything that matches has it, everything that holds pairs has it."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from datasets import make_willow

from cats.assets import asset
from cats.core.protocols import Correspondence, ModelMatcher, OneByOne, PairFlow, PairMatcher, PairSet
from cats.data import KINDS, open_dataset
from cats.data.samples import PairDataset, Sample
from cats.runtime import Matcher

PAIR = (asset("astronaut.jpg"), asset("grace_hopper.jpg"))


@pytest.fixture(scope="module")
def matchers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, PairMatcher]]:
    """One of every class that matches."""
    pytest.importorskip("torch")
    onnx = pytest.importorskip("onnx")
    from cats.benchmarks.worker import FileContestant
    from cats.calibration.sessions import ProbeSession, SessionMatcher
    from cats.evaluation.torch_matcher import TorchMatcher
    from cats.export.exported import ExportedModel

    file = asset("cats-tiny.onnx")
    graph = onnx.load(str(file))
    with Matcher(file, threads=1) as matcher:
        preprocessing = matcher.metadata.preprocessing
        yield {
            "Matcher": matcher,
            "TorchMatcher": TorchMatcher.load(asset("cats-tiny.pt")),
            "SessionMatcher": SessionMatcher(ProbeSession(graph, threads=1), preprocessing, None),
            "ExportedModel": ExportedModel({"pair": graph}, preprocessing, None),
            "FileContestant": FileContestant({"path": file, "options": {"threads": 1}}),
        }


def test_what_matches_gives_one_flow_by_either_method(matchers: dict[str, PairMatcher]) -> None:
    expected = matchers["Matcher"].match(*PAIR).flow
    for name, matcher in matchers.items():
        assert isinstance(matcher, PairMatcher), name
        streamed = list(matcher.match_many(iter([PAIR, PAIR[::-1]]), batch_size=2))
        alone = matcher.match(*PAIR)
        for found in (alone, streamed[0]):
            assert isinstance(found, Correspondence), name
            np.testing.assert_allclose(found.flow, expected, atol=0.02, err_msg=name)
        assert np.abs(streamed[1].flow - expected).max() > 1, name
    assert [name for name, matcher in matchers.items() if isinstance(matcher, ModelMatcher)] == ["Matcher"]


def test_every_class_that_matches_has_both_methods(matchers: dict[str, PairMatcher]) -> None:
    """Classes of the benchmarks' studies too, which are not made here."""
    from cats.benchmarks.studies.bf16_accuracy import Keeping
    from cats.benchmarks.studies.fp16_accuracy import SplitMatcher

    for cls in (*map(type, matchers.values()), Keeping, SplitMatcher):
        assert list(inspect.signature(cls.match).parameters)[:3] == ["self", "a", "b"], cls
        assert {"pairs", "batch_size"} <= set(inspect.signature(cls.match_many).parameters), cls
    assert issubclass(Keeping, OneByOne)
    assert issubclass(SplitMatcher, OneByOne)


def test_data_sets_are_sets_of_pairs(tmp_path: Path) -> None:
    willow = open_dataset(f"willow:{make_willow(tmp_path / 'willow')}")
    assert isinstance(willow, PairSet)
    assert isinstance(willow.select(limit=1), PairSet)
    assert all(isinstance(sample, Sample) for sample in willow)
    for reader in KINDS.values():
        module, _, name = reader.partition(":")
        assert issubclass(getattr(importlib.import_module(module), name), PairDataset)


def test_a_flow_is_a_correspondence() -> None:
    assert isinstance(PairFlow(np.zeros((2, 16, 16), np.float32)), Correspondence)
    with pytest.raises(NotImplementedError):
        OneByOne().match(*PAIR)
