"""Pages in a headless Chromium: the system's own, driven by Playwright."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")
WAIT_MS = 120_000


def chromium_path() -> str | None:
    """Chromium of this machine: ``CHROMIUM``, else the first one on the path."""
    return os.environ.get("CHROMIUM") or next((path for name in _NAMES if (path := shutil.which(name))), None)


@contextmanager
def launch(*arguments: str) -> Iterator[Any]:
    """A headless Chromium with further arguments; skips the test with the reason where that is impossible."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'cats-toolkit[dev]'")
    path = chromium_path()
    if path is None:
        pytest.skip("needs a Chromium: none on the path, and CHROMIUM is not set")
    with playwright.sync_playwright() as driver:
        # Containers often run as root, where Chromium's sandbox does not start.
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox", *arguments])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """One browser for all tests of a room."""
    with launch("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream") as browser:
        yield browser


@dataclass
class Watched:
    """A page with what went wrong in it and which addresses it asked for."""

    page: Any
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def check(self, *origins: str) -> None:
        """Fail where there was a console error or exception, or a request to another place than these."""
        assert not self.problems, self.problems
        allowed = (*origins, "data:", "blob:", "about:")
        strangers = [url for url in self.requests if not url.startswith(allowed)]
        assert not strangers, strangers


@contextmanager
def open_page(browser: Any, url: str, *, width: int = 1280, height: int = 900, **options: Any) -> Iterator[Watched]:
    """Open a page in a context of its own (own storage and service workers)."""
    context = browser.new_context(viewport={"width": width, "height": height}, **options)
    context.set_default_timeout(WAIT_MS)
    watched = Watched(context.new_page())
    context.on("request", lambda request: watched.requests.append(request.url))
    page = watched.page
    page.on("console", lambda said: watched.problems.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: watched.problems.append(str(error)))
    page.goto(url)
    yield watched
    context.close()


@contextmanager
def serve(folder: Path, headers: dict[str, str] | None = None) -> Iterator[str]:
    """Serve a folder on 127.0.0.1 as any web server would, with further headers; yields its address."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def end_headers(self) -> None:
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            super().end_headers()

        def log_message(self, *_: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:  # a page that is closed while it loads
            pass

    with Server(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
