"""A written page, and the browser that opens it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import serve

from cats.assets import asset
from cats.core.errors import BackendError
from cats.runtime import Match, Matcher
from cats.serving.npm import Package, fetch
from cats.serving.web import ISOLATION, write_site

AXE = Package(
    "axe-core",
    "4.14.1",
    "sha512-FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==",
    "MPL-2.0",
)
A, B = asset("astronaut.jpg"), asset("grace_hopper.jpg")


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core."""
    try:
        return fetch(AXE, ["axe.min.js"])["axe.min.js"].decode()
    except BackendError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``cats web`` writes."""
    folder = tmp_path_factory.mktemp("web") / "site"
    try:
        write_site(folder, asset("cats-tiny.onnx"))
    except BackendError as error:
        pytest.skip(str(error))
    return folder


@pytest.fixture(scope="session")
def address(site: Path) -> Iterator[str]:
    """The page on a server that sends the headers for threads."""
    with serve(site, ISOLATION) as url:
        yield url


@pytest.fixture(scope="session")
def match() -> Match:
    """Python's match of the two portraits."""
    with Matcher(asset("cats-tiny.onnx")) as matcher:
        return matcher.match(A, B, forward_backward=True)
