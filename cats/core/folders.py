"""Folders that a command writes as a whole."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from cats.core.errors import InputError
from cats.core.files import FORMER, create_draft_folder, remove_draft_folder

_AT_FDCWD, _EXCHANGE = -100, 2  # of Linux' renameat2


def check_folder(folder: Path, mark: str | None, *, reads: Iterable[Path] = (), force: bool = True) -> None:
    """Raise :class:`InputError` for a folder that is not to be replaced: a file, a link, one that holds other things.

    Args:
        mark: a file that every folder of the same command holds; None where none is ever replaced.
        reads: files and folders that the command reads: none may lie in the folder, which would take them along, and
            the folder may not lie in one of them.
        force: whether a folder of an earlier run may be replaced.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError(f"cannot write {folder}: it is not a folder")
    place = Path(os.path.realpath(folder))
    earlier = folder.is_dir() and _is_earlier(folder, mark)
    if not place.parent.is_dir():
        raise InputError(f"cannot write {folder}: the folder {folder.parent} does not exist")
    if not os.access(place.parent, os.W_OK):
        raise InputError(f"cannot write {folder}: no permission to write in {place.parent}")
    for read in reads:
        read_place = Path(os.path.realpath(read))
        if folder.is_dir() and read_place.is_relative_to(place):
            raise InputError(f"cannot write {folder}: {read} in it is read; give another folder")
        if read_place.is_dir() and place.is_relative_to(read_place):
            raise InputError(f"cannot write {folder}: the files of {read} are read; give a folder outside of it")
    if earlier and not force:
        raise InputError(f"{folder} exists already: give --force to replace it, or another name")
    if earlier and folder.samefile(os.curdir):
        raise InputError(f"cannot replace {folder}: it is the current folder; run the command from another one")


def _is_earlier(folder: Path, mark: str | None) -> bool:
    """Whether a folder is of an earlier run, not empty; refuses any other that is not."""
    try:
        if not any(folder.iterdir()):
            return False
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror}") from error
    if mark is None:
        raise InputError(f"{folder} exists and is not an empty folder: choose another name, or remove it")
    if not (folder / mark).is_file():
        raise InputError(f"{folder} is not empty and not of an earlier run: give a new folder")
    return True


@contextlib.contextmanager
def replaced_folder(folder: Path, mark: str | None, *, reads: Iterable[Path] = ()) -> Iterator[Path]:
    """A new folder that takes the place of ``folder`` when the block ends without an error.

    The place holds the former folder or the new one, whole, at every moment; where the file system cannot exchange two
    names in one step, there is a moment without either, which the next writer beside it mends.

    Raises:
        InputError: as of :func:`check_folder`, and where writing is impossible.
    """
    check_folder(folder, mark, reads=reads)
    target = folder if folder.name not in ("", os.pardir) else Path(os.path.realpath(folder))
    try:
        draft, handle = create_draft_folder(target)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror}") from error
    try:
        fresh = draft / "new"  # made by mkdir, so that its permissions are ordinary ones
        fresh.mkdir()
        yield fresh
        _take_place(fresh, target)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        remove_draft_folder(draft, handle)


def _take_place(fresh: Path, target: Path) -> None:
    if not target.is_dir():
        fresh.rename(target)
    elif not any(target.iterdir()):
        _fill_empty(fresh, target)
    elif not _exchange(fresh, target):
        former = target.with_name(f".{target.name}{FORMER}")
        shutil.rmtree(former, ignore_errors=True)  # of a writer that was killed after it had put the new one there
        target.rename(former)
        try:
            fresh.rename(target)
        except BaseException:
            if not target.exists():
                former.rename(target)
            raise
        shutil.rmtree(former, ignore_errors=True)


def _fill_empty(fresh: Path, target: Path) -> None:
    """Take the place of an empty folder; the current one and a mounted one stay what they are, and receive all."""
    if not target.samefile(os.curdir):
        try:
            fresh.rename(target)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
        else:
            return
    children = sorted(fresh.iterdir())
    try:
        for child in children:
            child.replace(target / child.name)
    except BaseException:
        for child in children:
            moved = target / child.name
            shutil.rmtree(moved) if moved.is_dir() else moved.unlink(missing_ok=True)
        raise


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system or the file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # not Linux, or an old C library
        return False
    done = renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE)
    return int(done) == 0
