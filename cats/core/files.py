"""Reading files that others made, and writing files so that nothing half-written is ever left behind."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from cats.core.errors import InputError

_PARTIAL, _TOGETHER = ".cats-partial", ".cats-together"
FORMER = ".cats-former"
"""End of the hidden name under which a folder waits while another takes its place."""

_cleaned: set[Path] = set()
_drafts: set[Path] = set()  # temporary files and folders of this process, known before they exist
os.register_at_fork(after_in_child=_drafts.clear)

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def open_regular(path: str | Path, what: str) -> BinaryIO:
    """Open an ordinary file for reading, without waiting for what is none.

    Args:
        what: what it should be, for messages, for example ``"image"``.

    Raises:
        InputError: missing, protected, a folder, pipe, device or socket (also through a link), or no possible name.
    """
    try:
        _refuse_special(Path(path).stat(), path, what)  # before it is opened: opening a device may do something
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            _refuse_special(os.fstat(handle), path, what)
            return os.fdopen(handle, "rb")
        except BaseException:
            os.close(handle)
            raise
    except OSError as error:
        raise InputError(f"cannot read {what} {path}: {error.strerror or error}") from error
    except ValueError as error:  # a NUL or a lone surrogate in the name
        raise InputError(f"cannot read {what} {str(path)!r}: no file can have this name") from error


def read_bytes(path: str | Path, *, limit: int, what: str) -> bytes:
    """The whole content of an ordinary file of at most ``limit`` bytes; a file that grows meanwhile is read as it was.

    Raises:
        InputError: as :func:`open_regular`, or larger.
    """
    with open_regular(path, what) as handle:
        size = os.fstat(handle.fileno()).st_size
        if size > limit:
            raise InputError(f"{what} {path} is {size >> 20} MiB large, over the limit of {limit >> 20} MiB")
        try:
            return handle.read(size)
        except OSError as error:
            raise InputError(f"cannot read {what} {path}: {error.strerror or error}") from error


def file_key(path: str | Path) -> str:
    """What tells a file, and this content of it, from others in a cache: its place, size, time and number.

    Raises:
        InputError: it does not exist, or cannot be looked at.
    """
    try:
        status = Path(path).stat()
        return f"{os.path.realpath(path)}:{status.st_size}:{status.st_mtime_ns}:{status.st_ino}"
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"cannot read {str(path)!r}: no file can have this name") from error


def _refuse_special(status: os.stat_result, path: str | Path, what: str) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFDIR:
        raise InputError(f"cannot read {what} {path}: Is a directory")
    if kind != stat.S_IFREG:
        raise InputError(f"cannot read {what} {path}: it is {_KINDS.get(kind, 'no file')}, not a file")


@contextmanager
def atomic_path(destination: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``destination`` that replaces it when the block ends without an error.

    See :func:`atomic_paths`; here for one file.
    """
    with atomic_paths(destination) as (temporary,):
        yield temporary


@contextmanager
def atomic_paths(*destinations: str | Path) -> Iterator[tuple[Path, ...]]:
    """Yield temporary paths beside files of one folder, which replace them when the block ends without an error.

    Several files replace together: what interrupts that is completed by the next :func:`settle`. A temporary file is
    hidden, keeps the suffix of its destination for writers that look at it, and is locked while its writer lives, so
    that the next writer in the folder removes what a killed one left. A link is followed.

    Within the block a temporary path is itself a destination, and written in place.

    Raises:
        InputError: a folder does not exist or cannot be written, or a destination is no ordinary file.
    """
    if len(destinations) == 1 and _PARTIAL in Path(destinations[0]).name:
        yield (Path(destinations[0]),)
        return
    targets = [_resolve(destination) for destination in destinations]
    for target in targets:
        _clean(target.parent)
    held: list[tuple[Path, int]] = []
    try:
        for target, destination in zip(targets, destinations, strict=True):
            try:
                held.append(_create(target))
            except OSError as error:
                raise InputError(f"cannot write {destination}: {error.strerror}") from error
        yield tuple(temporary for temporary, _ in held)
        try:
            _replace([(temporary, target) for (temporary, _), target in zip(held, targets, strict=True)])
        except OSError as error:
            names = " and ".join(map(str, destinations))
            raise InputError(f"cannot write {names}: {error.strerror}") from error
    finally:
        if len(targets) > 1:
            settle(targets[0])  # where a signal came while they were replaced
        for temporary, handle in held:
            temporary.unlink(missing_ok=True)
            _drafts.discard(temporary)
            os.close(handle)


def discard_drafts() -> None:
    """Remove what this process was about to write: it ends by a signal, which may have come between any two steps."""
    for draft in list(_drafts):
        with contextlib.suppress(OSError):
            _remove(draft)


def settle(path: str | Path) -> None:
    """Complete the replacement of several files, ``path`` among them, that a killed process left half done."""
    folder = Path(os.path.realpath(path)).parent
    note = _journal(Path(os.path.realpath(path)))
    try:
        pairs = json.loads(read_bytes(note, limit=1 << 16, what="note")) if note.exists() else []
    except (InputError, ValueError):
        return
    with contextlib.suppress(OSError, TypeError, ValueError):
        for temporary, target in pairs:
            if Path(temporary).name != temporary or Path(target).name != target or _PARTIAL not in temporary:
                return
            with contextlib.suppress(FileNotFoundError):
                (folder / temporary).replace(folder / target)
        for _, target in pairs:
            _journal(folder / target).unlink(missing_ok=True)


def check_destination(path: str | Path, suffixes: tuple[str, ...] | None = None) -> Path:
    """The file that ``path`` leads to, links followed.

    Args:
        suffixes: one of which the name must end in; None takes any.

    Raises:
        InputError: no file can be written there: another suffix, a folder, device or pipe, or a folder that is missing
            or protected.
    """
    if suffixes is not None and Path(path).suffix.lower() not in suffixes:
        raise InputError(f"cannot write {path}: its name must end in {', '.join(suffixes)}")
    place = _resolve(path)
    folder = Path(path).parent if not Path(path).is_symlink() else place.parent
    if not folder.is_dir():
        raise InputError(f"cannot write {path}: the folder {folder} does not exist")
    if not os.access(folder, os.W_OK):
        raise InputError(f"cannot write {path}: no permission to write in {folder}")
    return place


def _resolve(path: str | Path) -> Path:
    """Where ``path`` leads; refuses what is there and no ordinary file."""
    try:
        place = Path(os.path.realpath(path))
        kind = stat.S_IFMT(place.stat().st_mode) if place.exists() else stat.S_IFREG
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write {str(path)!r}: {getattr(error, 'strerror', None) or error}") from error
    if kind != stat.S_IFREG:
        what = "a folder" if kind == stat.S_IFDIR else _KINDS.get(kind, "no ordinary file")
        raise InputError(f"cannot write {path}: it is {what}")
    return place


def _create(target: Path) -> tuple[Path, int]:
    """A new file beside ``target`` with the mode that any new file has, and a handle that locks it."""
    while True:
        temporary = target.with_name(f".{target.stem[:40]}.{secrets.token_hex(4)}{_PARTIAL}{target.suffix}")
        _drafts.add(temporary)
        try:
            handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except OSError:  # also where the name is another's
            _drafts.discard(temporary)
            raise
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(handle).st_nlink:
            return temporary, handle
        os.close(handle)  # another process took it for a left one, between the two calls


def create_draft_folder(target: Path) -> tuple[Path, int]:
    """A new hidden folder beside ``target``, and a handle that locks it: the next writer beside it removes it once
    nobody holds the lock. What killed writers left there is removed, too.

    Raises:
        OSError: it cannot be made.
    """
    _clean(Path(os.path.realpath(target.parent)))
    while True:
        draft = target.with_name(f".{target.name[:40]}.{secrets.token_hex(4)}{_PARTIAL}")
        _drafts.add(draft)
        try:
            draft.mkdir()
        except OSError:
            _drafts.discard(draft)
            raise
        try:
            handle = os.open(draft, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # another process took it for a left one, between the two calls
            continue
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if draft.exists():
            return draft, handle
        os.close(handle)


def remove_draft_folder(draft: Path, handle: int) -> None:
    """Remove what :func:`create_draft_folder` made, and all in it."""
    shutil.rmtree(draft, ignore_errors=True)
    _drafts.discard(draft)
    os.close(handle)


def _replace(pairs: list[tuple[Path, Path]]) -> None:
    if len(pairs) == 1:
        pairs[0][0].replace(pairs[0][1])
        return
    text = json.dumps([(temporary.name, target.name) for temporary, target in pairs])
    notes = [_journal(target) for _, target in pairs]
    try:
        for note in notes:
            draft, handle = _create(note)
            try:
                draft.write_text(text)
                draft.replace(note)
            finally:
                draft.unlink(missing_ok=True)
                _drafts.discard(draft)
                os.close(handle)
        _drafts.difference_update(temporary for temporary, _ in pairs)  # from here on the notes are kept
        for temporary, target in pairs:
            temporary.replace(target)
    except OSError:
        for note in notes:
            note.unlink(missing_ok=True)
        raise
    finally:  # also where a signal came between the two
        settle(pairs[0][1])


def _journal(target: Path) -> Path:
    return target.with_name(f".{target.name}{_TOGETHER}")


def _clean(folder: Path) -> None:
    """Remove temporary files whose writers are dead; once a folder and process."""
    if folder in _cleaned:
        return
    _cleaned.add(folder)
    try:
        names = [entry.name for entry in folder.iterdir() if entry.name.startswith(".")]
    except OSError:
        return
    for name in names:
        if name.endswith(_TOGETHER):
            settle(folder / name[1 : -len(_TOGETHER)])
    for name in names:
        if name.endswith(FORMER) and not (folder / name[1 : -len(FORMER)]).exists():
            with contextlib.suppress(OSError):  # its place was never taken
                (folder / name).rename(folder / name[1 : -len(FORMER)])
        if _PARTIAL in name or name.endswith(FORMER):
            with contextlib.suppress(OSError):
                handle = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _remove(folder / name)
                finally:
                    os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def write_bytes(destination: str | Path, data: bytes) -> None:
    """Write ``data`` atomically; raises :class:`InputError` where that is impossible (full disk included)."""
    with atomic_path(destination) as temporary:
        try:
            temporary.write_bytes(data)
        except OSError as error:
            raise InputError(f"cannot write {destination}: {error.strerror}") from error


def write_text(destination: str | Path, text: str) -> None:
    """Write UTF-8 text atomically; see :func:`write_bytes`."""
    write_bytes(destination, text.encode())


def sha256_file(path: str | Path) -> str:
    """Hex SHA-256 of a file's content."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(handle)


def _sha256(handle) -> str:  # type: ignore[no-untyped-def]  # Python 3.10 has no hashlib.file_digest
    digest = hashlib.sha256()
    while block := handle.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
