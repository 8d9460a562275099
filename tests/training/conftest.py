"""What the tests of training share: the command, and validations on a few warps, where users' runs draw many."""

from __future__ import annotations

import pytest
from commands import Command, runner

from cats.training import cli as train_cli
from cats.training.validation import WarpValidation


@pytest.fixture(autouse=True)
def few_warps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing and matching 64 warps three times takes longer than the updates between."""
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr(WarpValidation.__init__, "__defaults__", (8, "off"))


@pytest.fixture
def cats_train(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Command:
    return runner(train_cli.main, "cats-train", monkeypatch, capsys)
