"""Which files are photos: one answer for galleries, training, calibration and data sets."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from cats.core.errors import InputError

PHOTO_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".heic", ".heif", ".hif"),
        *(".gif", ".bmp", ".dib", ".tif", ".tiff", ".jp2", ".j2k", ".qoi", ".tga", ".ppm", ".pgm", ".pbm", ".pnm"),
    )
)
"""Suffixes, in lower case, of the formats that :func:`cats.core.images.read_image` reads."""

# What other programs keep beside photos: macOS in archives, Synology's previews, Windows' bin.
_NOT_OURS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN"})
_MAX_FOLDERS = 200_000


def list_photos(folder: str | Path) -> tuple[list[Path], int]:
    """The photos below a folder, by their suffix, sorted, and the number of other files.

    Searched recursively; links to folders are followed unless they lead back to a folder they lie in. What is hidden
    (``.name``, macOS's ``._name``, ``__MACOSX``, ``.ipynb_checkpoints``) is neither a photo nor counted. A link to
    nowhere or a pipe called ``x.jpg`` is listed: reading it names what is wrong.

    Raises:
        InputError: not a folder, or a folder in it cannot be read.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"{root} is not a folder of photos")
    files = sorted(_walk(root))
    photos = [file for file in files if file.suffix.lower() in PHOTO_SUFFIXES]
    return photos, len(files) - len(photos)


def pair_photos(folder: str | Path, limit: int) -> list[tuple[Path, Path]]:
    """Each photo of a folder (searched recursively) with the next one of its own sub-folder, ``limit`` pairs at most,
    spread evenly over all; where no sub-folder holds two photos, with the next one of any.

    Raises:
        InputError: not a folder, or no two photos in it.
    """
    files, _ = list_photos(folder)
    if len(files) < 2:
        raise InputError(f"{folder} holds {len(files)} photos: at least two are needed")
    pairs = [(a, b) for a, b in itertools.pairwise(files) if a.parent == b.parent] or list(itertools.pairwise(files))
    count = min(limit, len(pairs))
    return [pairs[index * (len(pairs) - 1) // max(count - 1, 1)] for index in range(count)]


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is no part of a user's photos; see :func:`list_photos`."""
    return name.startswith(".") or name in _NOT_OURS


def _walk(root: Path) -> list[Path]:
    files: list[Path] = []
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [(str(root), frozenset())]
    seen = 0
    while waiting:
        folder, above = waiting.pop()
        try:
            status = Path(folder).stat()
            inode = (status.st_dev, status.st_ino)
            if inode in above:  # a link to a folder that it lies in
                continue
            seen += 1
            if seen > _MAX_FOLDERS:
                raise InputError(f"{root} holds over {_MAX_FOLDERS:,} folders: do links in it lead to each other?")
            with os.scandir(folder) as entries:
                for entry in entries:
                    if is_hidden(entry.name):
                        continue
                    if entry.is_dir():
                        waiting.append((entry.path, above | {inode}))
                    else:
                        files.append(Path(entry.path))
        except OSError as error:
            raise InputError(f"cannot read the folder {folder}: {error.strerror}") from error
    return files
