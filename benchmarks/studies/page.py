"""The page in a browser: milliseconds of a pair in WebAssembly on one thread and on all, and of a click.

A headless Chromium opens what ``cats web`` writes, from a server that sends the headers for threads. A pair is two
photos matched one way, their inputs prepared already; a click is from the pointer's event to what is drawn. Nothing
else may run beside it.

Usage: python -m cats.benchmarks.studies.page [MODEL.onnx] [--pairs 15] [--output NAME.json]
"""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from cats.assets import asset
from cats.benchmarks.record import describe_run, spread, write_record
from cats.core.console import execute, new_app, note, print_json
from cats.core.errors import BackendError, require
from cats.runtime.hardware import usable_cpus
from cats.serving.npm import ORT_WEB
from cats.serving.web import ISOLATION, write_site

app = new_app()

_MATCHED = "() => document.documentElement.dataset.state == 'checked'"
_CLICKS = 20
_WAIT_MS = 300_000


@app.command()
def page(
    model: Annotated[Path, typer.Argument(help="ONNX file of kind pair.")] = asset("cats-tiny.onnx"),  # noqa: B008
    pairs: Annotated[int, typer.Option(help="Pairs of each measurement.", min=3)] = 15,
    output: Annotated[Path | None, typer.Option(help="Write the figures as JSON.", show_default=False)] = None,
) -> None:
    """Measure the page."""
    playwright = require("playwright.sync_api", extra="dev", purpose="drive a browser")
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        raise BackendError("no Chromium: none on the path, and CHROMIUM does not name one")
    threads = [1, usable_cpus()] if usable_cpus() > 1 else [1]
    result: dict[str, Any] = {
        **describe_run("page", ["playwright"], threads[-1]),
        "model": model.name,
        "onnxruntime_web": ORT_WEB.version,
    }
    with tempfile.TemporaryDirectory() as folder, playwright.sync_playwright() as driver:
        site = Path(folder, "site")
        write_site(site, model)
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        result["chromium"] = browser.version
        with _serve(site) as address:
            for count in threads:
                note(f"{pairs} pairs on {count} thread{'' if count == 1 else 's'}")
                pair_ms, click_ms = _measure(browser, f"{address}?engine=wasm&threads={count}", pairs)
                result[f"pair_ms_{count}_threads"] = spread(pair_ms)
                result["click_ms"] = {**spread(click_ms), "max": round(max(click_ms), 2)}
        browser.close()
    print_json(result)
    if output is not None:
        write_record(output, result)


def _measure(browser: Any, address: str, pairs: int) -> tuple[list[float], list[float]]:
    """Milliseconds of pairs, and of clicks after them."""
    tab = browser.new_page()
    tab.set_default_timeout(_WAIT_MS)
    tab.goto(address)
    tab.wait_for_selector("html[data-state=ready]")
    tab.locator(".sample").first.click()
    tab.wait_for_function(_MATCHED)
    times = []
    for _ in range(pairs):
        tab.click("#swap")
        tab.wait_for_function(_MATCHED)
        times.append(_number(tab, "pairMs"))
    clicks = []
    for index in range(_CLICKS):
        tab.locator("#canvas-a").click(position={"x": 30 + 12 * index, "y": 40 + 9 * index})
        clicks.append(_number(tab, "answerMs"))
    tab.close()
    return times, clicks


def _number(tab: Any, name: str) -> float:
    return float(tab.evaluate(f"Number(document.documentElement.dataset.{name})"))


@contextmanager
def _serve(folder: Path) -> Iterator[str]:
    """Serve a folder on 127.0.0.1 with the headers for threads; yields its address."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def end_headers(self) -> None:
            for name, value in ISOLATION.items():
                self.send_header(name, value)
            super().end_headers()

        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


if __name__ == "__main__":
    execute(app)
