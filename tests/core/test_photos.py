"""Which files are photos, and files that only look like some."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from cats.core.errors import InputError
from cats.core.image_files import FORMATS
from cats.core.images import read_image
from cats.core.photos import PHOTO_SUFFIXES, list_photos


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32)).save(folder / name)


def found(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in list_photos(folder)[0]]


def test_hidden_files_and_folders_are_no_photos(tmp_path: Path) -> None:
    fill(tmp_path, "cup/0.jpg", "b.PNG", ".hid.jpg", ".ipynb_checkpoints/0.jpg", "__MACOSX/cup/0.jpg", "@eaDir/1.jpg")
    (tmp_path / "cup" / "._0.jpg").write_bytes(b"Mac OS X")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".DS_Store").write_text("x")
    assert found(tmp_path) == ["b.PNG", "cup/0.jpg"]
    assert list_photos(tmp_path)[1] == 1  # the notes


def test_the_folder_itself_may_be_hidden(tmp_path: Path) -> None:
    fill(tmp_path / ".cache", "0.jpg")
    assert found(tmp_path / ".cache") == ["0.jpg"]


def test_linked_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    fill(tmp_path / "store", "cup/0.jpg", "hat/0.jpg")
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("cup", "hat"):
        (photos / name).symlink_to(f"../store/{name}")
    (tmp_path / "store" / "hat" / "up").symlink_to("../../photos")
    (tmp_path / "store" / "cup" / "self").symlink_to(".")
    assert found(photos) == ["cup/0.jpg", "hat/0.jpg"]


def test_what_cannot_be_read_is_listed_and_named_when_read(tmp_path: Path) -> None:
    (tmp_path / "dead.jpg").symlink_to("gone.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert found(tmp_path) == ["dead.jpg", "pipe.jpg", "zero.jpg"]
    for path, text in zip(list_photos(tmp_path)[0], ("No such file", "a pipe", "a device"), strict=True):
        with pytest.raises(InputError, match=f"{path.name}: .*{text}"):
            read_image(path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing is not a folder"):
        list_photos(tmp_path / "nothing")


def test_the_suffixes_are_those_of_the_formats() -> None:
    Image.init()
    known = Image.registered_extensions()
    assert {known[suffix] for suffix in PHOTO_SUFFIXES if suffix in known} <= set(FORMATS)
    assert ".eps" not in PHOTO_SUFFIXES
    assert {".jpg", ".jpeg", ".png", ".webp", ".heic", ".tif"} < PHOTO_SUFFIXES
