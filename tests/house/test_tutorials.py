"""Tutorials from top to bottom: their commands and programs run in order, and print what the pages show.

Photos differ from those of the pages, so numbers are not compared, and a line of dots stands for what is left out. What
a page trains for minutes is trained for seconds here: what is printed is the same.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from readme import code_blocks, install_commands, shell_commands

from cats.assets import asset
from cats.benchmarks.record import REPOSITORY

TUTORIALS = REPOSITORY / "docs/tutorials"
PROGRAM = {"cpp": "app.cpp", "cmake": "CMakeLists.txt"}
PORT = ":8000"  # of the pages
SHORTER = {"--set steps=30": "--set steps=2", "--limit 12": "--limit 4"}
"""Of the pages, and what is run in its place."""
CHEAP = ("click-in-a-browser", "compare-two-models", "label-a-folder")
LONG = ("opencv-notebook-cpp", "train-quantize-serve")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a reader has: two photos, photos in two folders of a kind, three with labels, an 8-bit model."""
    portrait, other = asset("astronaut.jpg"), asset("grace_hopper.jpg")
    shutil.copyfile(portrait, tmp_path / "a.jpg")
    shutil.copyfile(other, tmp_path / "b.jpg")
    shutil.copyfile(asset("cats-tiny.int8.onnx"), tmp_path / "best.int8.onnx")
    rng = np.random.default_rng(3)
    for name in (portrait, other):
        place = tmp_path / "photos" / name.stem
        place.mkdir(parents=True)
        with Image.open(name) as photo:
            for number in range(4):
                x, y = (int(v) for v in rng.integers(0, 60, 2))
                photo.crop((x, y, x + 440, y + 440)).resize((256, 256)).save(place / f"{number}.jpg")
    (tmp_path / "refs").mkdir()
    points = json.loads(asset("astronaut.json").read_text())
    document: dict[str, list[Any]] = {
        "images": [],
        "categories": [{"id": 1, "name": "duck", "keypoints": [f"part {n}" for n in range(len(points))]}],
        "annotations": [],
    }
    for number in (1, 2, 3):
        shutil.copyfile(portrait, tmp_path / f"refs/{number}.jpg")
        document["images"].append({"id": number, "file_name": f"{number}.jpg", "width": 512, "height": 512})
        document["annotations"].append(
            {"id": number, "image_id": number, "category_id": 1, "num_keypoints": len(points), "area": 512 * 512,
             "bbox": [0, 0, 512, 512], "iscrowd": 0, "keypoints": [v for x, y in points for v in (x, y, 2)]}
        )  # fmt: skip
    (tmp_path / "refs/refs.json").write_text(json.dumps(document))
    return tmp_path


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    path = install_commands(tmp_path_factory.mktemp("bin"))
    python = path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')  # a link would leave the virtual environment
    python.chmod(0o755)
    found = f"{path}:{os.environ['PATH']}"
    return {**os.environ, "PATH": found, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "120"}


def words(line: str) -> str:
    """A line without numbers, table borders and gaps."""
    return " ".join(re.sub(r"[-+]?\d[\d.,:]*|[^\w\s./'()<>%-]", " ", line).split())


def serve(command: str, port: int, folder: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a server and wait until it answers."""
    server = subprocess.Popen(f"exec {command}", shell=True, cwd=folder, env=environment)
    for _ in range(600):
        assert server.poll() is None, command
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return server
        time.sleep(0.3)
    server.kill()
    raise AssertionError(f"{command} does not answer")


def follow(page: Path, folder: Path, environment: dict[str, str]) -> None:
    """Run a page's blocks in order; what a block of output shows must have been printed since the last such block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    servers: list[subprocess.Popen[bytes]] = []
    try:
        _run_blocks(page, folder, environment, port, servers)
    finally:
        for server in servers:
            server.terminate()
            server.wait(120)


def _run_blocks(
    page: Path, folder: Path, environment: dict[str, str], port: int, servers: list[subprocess.Popen[bytes]]
) -> None:
    printed, program = "", ""
    for block in code_blocks(page):
        where = f"{page.name}:{block.line}"
        if block.language == "text":
            seen = {words(line) for line in printed.splitlines()}
            missing = [line for line in block.text.splitlines() if words(line) not in seen and line.strip() != "..."]
            assert not missing, (where, missing, printed)
            printed = ""
        elif block.language in PROGRAM:
            (folder / PROGRAM[block.language]).write_text(block.text)
        elif block.language == "python":
            program += block.text
            command = [sys.executable, "-c", program]
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, (where, done.stderr)
            printed += done.stdout
        elif block.language == "sh":
            for command in shell_commands(block):
                if command.startswith(("pip install", "python -m http.server")):
                    continue
                if command.startswith("cats serve"):
                    servers.append(serve(f"{command} --port {port}", port, folder, environment))
                    continue
                command = command.replace(PORT, f":{port}")
                for long, short in SHORTER.items():
                    command = command.replace(long, short)
                ran = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
                assert ran.returncode == 0, (where, command, ran.stderr)
                printed += ran.stdout + ran.stderr


@pytest.mark.parametrize("name", CHEAP)
def test_tutorial(name: str, folder: Path, environment: dict[str, str]) -> None:
    follow(TUTORIALS / f"{name}.md", folder, environment)


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_long_tutorial(name: str, folder: Path, environment: dict[str, str]) -> None:
    (folder / "best.int8.onnx").unlink()  # which a page makes itself
    follow(TUTORIALS / f"{name}.md", folder, environment)


def test_every_tutorial_is_followed_and_linked() -> None:
    assert {page.stem for page in TUTORIALS.glob("*.md")} == {*CHEAP, *LONG}
    contents = (REPOSITORY / "docs/index.md").read_text("utf-8")
    assert [name for name in (*CHEAP, *LONG) if f"\ntutorials/{name}\n" not in contents] == []


def test_what_is_run_shorter_is_in_a_page() -> None:
    text = "".join(page.read_text("utf-8") for page in TUTORIALS.glob("*.md"))
    assert [long for long in SHORTER if long not in text] == []


def test_output_that_was_not_printed_is_found(folder: Path, environment: dict[str, str]) -> None:
    page = folder / "page.md"
    page.write_text("```sh\necho wrote 3 files\n```\n\n```text\nwrote 4 files\n```\n")
    follow(page, folder, environment)
    page.write_text("```sh\necho wrote 3 files\n```\n\n```text\nread 3 files\n```\n")
    with pytest.raises(AssertionError, match="read 3 files"):
        follow(page, folder, environment)
