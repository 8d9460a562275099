"""Folders that a command writes as a whole."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from cats.core.errors import InputError


def check_folder(folder: Path, mark: str, *, reads: Iterable[Path] = ()) -> None:
    """Raise :class:`InputError` for a folder that is not to be replaced: a file, or one that holds other things.

    Args:
        mark: a file that every folder of the same command holds.
        reads: files that the command reads, which may not lie in the folder: they would go with it.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError(f"cannot write {folder}: it is not a folder")
    if folder.is_dir():
        if any(folder.iterdir()) and not (folder / mark).is_file():
            raise InputError(f"{folder} is not empty and not of an earlier run: give a new folder")
        for file in reads:
            if Path(os.path.realpath(file)).is_relative_to(os.path.realpath(folder)):
                raise InputError(f"cannot write {folder}: {file} in it is read; give another folder")
    elif not folder.parent.is_dir():
        raise InputError(f"cannot write {folder}: the folder {folder.parent} does not exist")


@contextlib.contextmanager
def replaced_folder(folder: Path, mark: str, *, reads: Iterable[Path] = ()) -> Iterator[Path]:
    """A new folder that takes the place of ``folder`` when the block ends without an error; raises as
    :func:`check_folder`, and where writing is impossible."""
    check_folder(folder, mark, reads=reads)
    try:
        outer = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.absolute().parent))
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror}") from error
    try:
        fresh = outer / folder.name  # made by mkdir, so that its permissions are ordinary ones
        fresh.mkdir()
        yield fresh
        if folder.is_dir():
            folder.rename(outer / "former")
        fresh.rename(folder)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(outer, ignore_errors=True)
