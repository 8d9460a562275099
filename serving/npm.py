"""JavaScript packages of others, fetched with the user's own npm, checked against a hash and kept.

They stay out of the wheel: ONNX Runtime Web alone is 41 MB, which only those need who write a page.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cats.core.errors import BackendError
from cats.core.files import write_bytes

_SECONDS = 300
_MAX_FILE = 64 << 20


@dataclass(frozen=True)
class Package:
    """A package of npm: name, exact version, the sha512 of its archive as npm writes it, and its licence."""

    name: str
    version: str
    integrity: str
    licence: str

    @property
    def archive(self) -> str:
        """Name of the archive that ``npm pack`` writes."""
        return f"{self.name}-{self.version}.tgz"


ORT_WEB = Package(
    "onnxruntime-web",
    "1.30.0",
    "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
    "MIT",
)
COI = Package(
    "coi-serviceworker",
    "0.1.7",
    "sha512-bjSUqEngCPOkErY2vbyWsaIGCNRODYzlNycaREVw5s12/C8SM+RnRUUeX6pZbTtov6C52ZLY/+tvHK+BDxuUuA==",
    "MIT",
)


def fetch(package: Package, files: Sequence[str]) -> dict[str, bytes]:
    """Files of a package by their name in it, for example ``dist/ort.wasm.min.mjs``.

    The archive is kept in the user's cache folder (``XDG_CACHE_HOME``, else ``~/.cache``), below ``cats-toolkit/npm``.

    Raises:
        BackendError: npm is not here or cannot fetch the package, or the archive is not the one that was pinned.
    """
    archive = _cache() / package.archive
    if not archive.is_file() or _integrity(archive.read_bytes()) != package.integrity:
        write_bytes(archive, _pack(package))
    found: dict[str, bytes] = {}
    with tarfile.open(archive) as content:
        for member in content:
            name = member.name.partition("/")[2]  # every path begins with "package/"
            if name in files and member.isfile() and member.size <= _MAX_FILE:
                handle = content.extractfile(member)
                assert handle is not None  # it is a file
                found[name] = handle.read()
    missing = set(files) - set(found)
    if missing:
        raise BackendError(f"{package.name} {package.version} has no {', '.join(sorted(missing))}")
    return found


def _pack(package: Package) -> bytes:
    npm = shutil.which("npm")
    wanted = f"{package.name}@{package.version}"
    if npm is None:
        raise BackendError(
            f"npm is needed to fetch {wanted} and is not here: install Node.js, or copy {package.archive} "
            f"(npm pack {wanted} on another machine) into {_cache()}"
        )
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", wanted, "--pack-destination", folder, "--ignore-scripts", "--json"]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BackendError(f"npm pack {wanted} did not end: {error}") from error
        archive = Path(folder, package.archive)
        if done.returncode or not archive.is_file():
            raise BackendError(f"npm pack {wanted} failed: {_reason(done)}")
        data = archive.read_bytes()
    if _integrity(data) != package.integrity:
        raise BackendError(f"npm gave another {wanted} than the one this toolkit was tested with: its sha512 differs")
    return data


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    try:
        return str(json.loads(done.stdout)["error"]["summary"])[:300]
    except (ValueError, KeyError, TypeError):
        lines = (done.stderr or done.stdout).strip().splitlines()
        return lines[-1][:300] if lines else f"exit status {done.returncode}"


def _integrity(data: bytes) -> str:
    return f"sha512-{base64.b64encode(hashlib.sha512(data).digest()).decode()}"


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "cats-toolkit" / "npm"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BackendError(f"cannot make the folder {folder}: {error.strerror}; set XDG_CACHE_HOME") from error
    return folder
