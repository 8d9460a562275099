"""Reading files that others made, and writing files so that nothing half-written is ever left behind."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from cats.core.errors import InputError

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

    The temporary file keeps the suffix of the destination, for writers that look at it.

    Raises:
        InputError: the folder does not exist or cannot be written.
    """
    target = Path(destination)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.stem}.", suffix=target.suffix, dir=target.parent)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror}") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes private files; the result should be an ordinary one
        try:
            temporary.replace(target)
        except OSError as error:
            raise InputError(f"cannot write {target}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_destination(path: Path | None, suffixes: tuple[str, ...] | None = None) -> None:
    """Raise :class:`InputError` for what cannot be written, before the work: a file of another suffix (None takes any),
    a folder, or a file in a folder that is missing or protected."""
    if path is None:
        return
    if suffixes is not None and path.suffix.lower() not in suffixes:
        raise InputError(f"cannot write {path}: its name must end in {', '.join(suffixes)}")
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder")
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: the folder {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"cannot write {path}: no permission to write in {path.parent}")


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
