"""Writing files so that nothing half-written is ever left behind."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cats.core.errors import InputError


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
