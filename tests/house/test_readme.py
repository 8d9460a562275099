"""README from top to bottom: its commands run in order and write what they say; its links lead somewhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from readme import code_blocks, install_commands, shell_commands

from cats.assets import asset
from cats.benchmarks.record import REPOSITORY

README = REPOSITORY / "README.md"
WRITES = {"cats-run cats-tiny a.jpg b.jpg": "a-b.png", "cats view": "match.html", "cats label": "labels.json"}


def commands() -> list[str]:
    return [c for block in code_blocks(README) if block.language == "sh" for c in shell_commands(block)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has: two photos, a folder of photos, one of them labelled, and a checkpoint."""
    place = tmp_path_factory.mktemp("reader")
    (place / "photos").mkdir()
    (place / "refs").mkdir()
    shutil.copyfile(asset("astronaut.jpg"), place / "a.jpg")
    shutil.copyfile(asset("grace_hopper.jpg"), place / "b.jpg")
    shutil.copyfile(asset("grace_hopper.jpg"), place / "photos/hopper.jpg")
    shutil.copyfile(asset("astronaut.jpg"), place / "refs/astronaut.jpg")
    shutil.copyfile(asset("cats-tiny.pt"), place / "best.pt")
    points = json.loads(asset("astronaut.json").read_text())
    names = [f"point {number}" for number in range(len(points))]
    document = {
        "images": [{"id": 1, "file_name": "astronaut.jpg", "width": 512, "height": 512}],
        "categories": [{"id": 1, "name": "portrait", "keypoints": names, "skeleton": []}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "num_keypoints": len(points), "bbox": [0, 0, 512, 512],
             "area": 512 * 512, "iscrowd": 0, "keypoints": [v for x, y in points for v in (x, y, 2)]}
        ],
    }  # fmt: skip
    (place / "refs/refs.json").write_text(json.dumps(document))
    return place


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    path = install_commands(tmp_path_factory.mktemp("bin"))
    return {**os.environ, "PATH": f"{path}:{os.environ['PATH']}", "COLUMNS": "100"}


def run(command: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith(tuple(WRITES))])
def test_command_writes_what_it_says(command: str, folder: Path, environment: dict[str, str]) -> None:
    done = run(command, folder, environment)
    assert done.returncode == 0, done.stderr
    (name,) = (file for start, file in WRITES.items() if command.startswith(start))
    assert (folder / name).stat().st_size > 0
    assert "Traceback" not in done.stderr


def test_every_command_is_tried_somewhere() -> None:
    tried = (*WRITES, "cats serve", "cats doctor", "cats-export")
    assert [c for c in commands() if not c.startswith((*tried, "make ", "pip install"))] == []


def test_doctor_and_server(folder: Path, environment: dict[str, str]) -> None:
    pytest.importorskip("uvicorn", reason="cats serve needs cats-toolkit[serve]")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (command,) = (c for c in commands() if c.startswith("cats serve"))
    server = subprocess.Popen(
        f"exec {command} --port {port}", shell=True, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        for _ in range(400):
            try:
                page = urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20).read()
                break
            except OSError:
                assert server.poll() is None, server.stderr.read() if server.stderr else ""
                time.sleep(0.3)
        assert b"<html" in page
    finally:
        server.terminate()
        server.communicate(timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in commands() if c.startswith(("cats-export", "cats doctor"))])
def test_long_command(command: str, folder: Path, environment: dict[str, str]) -> None:
    done = run(command, folder, environment)
    assert done.returncode == 0, done.stderr


def test_python_of_the_readme(folder: Path) -> None:
    (block,) = (block for block in code_blocks(README) if block.language == "python")
    code = block.text + "\nassert match.transfer([[203, 101]]).shape == (1, 2)\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


PAGES = [README, REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    missing = [link for link in links if link and "://" not in link and not (page.parent / link).exists()]
    generated = {"reference/commands.md", "docs/reference/commands.md"}
    assert not set(missing) - generated
