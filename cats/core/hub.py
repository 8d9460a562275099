"""Models on a hub that speaks Hugging Face's protocol: ``hf://user/repo[@revision][/file]``.

Files are fetched by ``huggingface_hub`` (extra ``hub``) into its cache, at one commit, and checked against the digest
under which the hub names them. Without a network, or with ``HF_HUB_OFFLINE=1``, the cache alone is read. Where a commit
is named, the hub is not asked again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from cats.core.errors import CatsError, InputError, ModelFileError, require
from cats.core.files import sha256_file

MODELS, CHECKPOINTS = (".onnx",), (".safetensors", ".pt", ".pth")
"""Suffixes of what is fetched: exported models, and checkpoints, which are preferred in this order."""

_NAME = re.compile(r"^hf:/{1,3}")  # pathlib leaves one slash of two
_PART = re.compile(r"[\w][\w.-]{0,95}")
_CACHED = re.compile(r"/models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})/(.+)$")
_HALVES = (".encoder.onnx", ".matcher.onnx")
_CHUNK = 1 << 20


@dataclass(frozen=True)
class HubName:
    """What ``hf://user/repo[@revision][/file]`` says.

    Attributes:
        repo: ``user/repo``.
        revision: branch, tag or commit; None is ``main``.
        file: its path in the repository; None is the only model there.
    """

    repo: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf://{self.repo}{revision}{'/' + self.file if self.file else ''}"


def parse_hub_name(model: str | Path) -> HubName | None:
    """The parts of a name on the hub; None for any other name.

    A slash within a revision is written ``%2F``.

    Raises:
        InputError: it begins as one and is none.
    """
    text = str(model)
    start = _NAME.match(text)
    if start is None:
        return None
    user, _, rest = text[start.end() :].partition("/")
    repo, slash, file = rest.partition("/")
    repo, at, revision = repo.partition("@")
    parts = PurePosixPath(file).parts
    good = _PART.fullmatch(user) and _PART.fullmatch(repo) and (revision or not at) and (file or not slash)
    if not good or ".." in parts or file.startswith("/"):
        raise InputError(f"{text} is no name on the hub: hf://user/repo, hf://user/repo@revision, hf://user/repo/file")
    return HubName(f"{user}/{repo}", unquote(revision) or None, file or None)


def fetch(name: HubName, suffixes: Sequence[str] = MODELS) -> Path:
    """A file of a repository on this machine, fetched where it is not in the cache; of a split model both.

    Args:
        suffixes: of files that may be meant where the name has none.

    Returns:
        Its path in the cache, which says repository and commit (:func:`hub_source`); of a split model its encoder.

    Raises:
        InputError: no such repository, revision or file, several that could be meant, or no way to the hub.
        ModelFileError: the file is not the one that the hub names, or an engine, which is code.
    """
    hub = require("huggingface_hub", extra="hub", purpose=f"fetch {name}")
    files = [name.file] if name.file else _choose(name, _listed(hub, name), suffixes)
    first = files[0]
    if first.endswith((".plan", ".engine")):
        raise ModelFileError(f"{name} is an engine, which is code of one machine: fetch the .onnx and run cats-build")
    if len(files) == 1 and first.endswith(_HALVES):
        stem = first.removesuffix(_HALVES[0]).removesuffix(_HALVES[1])
        files = [first, *(stem + half for half in _HALVES if stem + half != first)]
    paths = [Path(_asked(name, hub.hf_hub_download, name.repo, file, revision=name.revision)) for file in files]
    if len({_snapshot(path) for path in paths}) > 1:
        raise InputError(f"{name} changed while it was fetched: try again, or name a commit")
    for path in paths:
        check_digest(path)
    return paths[0]


def hub_source(path: str | Path) -> str | None:
    """``hf://user/repo@commit/file`` of a file in the hub's cache; None for any other."""
    found = _CACHED.search(Path(path).absolute().as_posix())
    if found is None:
        return None
    user, repo, commit, file = found.groups()
    return str(HubName(f"{user}/{repo}", commit, file))


def check_digest(path: Path) -> str:
    """Compare a file in the cache with the digest in the name under which it is kept there, and return its SHA-256.

    Large files are kept under their SHA-256, small ones under the SHA-1 that git gives them.

    Raises:
        ModelFileError: another content; the message says how to fetch it again.
    """
    kept, digest = path.resolve().name, sha256_file(path)
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", kept):
        raise ModelFileError(f"{path} cannot be checked: the cache does not keep it under its digest")
    if kept != (digest if len(kept) == 64 else _git_sha1(path)):
        raise ModelFileError(f"{path} is not the file that the hub names (digest {kept}): delete it and fetch it again")
    return digest


def asked_hub(what: str, error: Exception) -> CatsError | None:
    """One sentence for what ``huggingface_hub`` raised; None for an error that is not its own."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if "GatedRepoError" in names:
        return InputError(f"{what}: its owner has to let you in first; ask on its page, then: hf auth login")
    if "RepositoryNotFoundError" in names:
        return InputError(f"{what}: no such repository, or a private one (then: hf auth login, or HF_TOKEN)")
    if "RevisionNotFoundError" in names:
        return InputError(f"{what}: the repository has no such revision")
    if "LocalEntryNotFoundError" in names or "OfflineModeIsEnabled" in names:
        return InputError(f"{what}: not in the cache, and the hub cannot be reached")
    if "EntryNotFoundError" in names:
        return InputError(f"{what}: the repository has no such file")
    own = {"HfHubHTTPError", "HFValidationError", "FileMetadataError", "HTTPError", "TransportError", "OSError"}
    if names & (own | {"ValueError", "RuntimeError"}):
        return InputError(f"{what}: {' '.join(str(error).split())[:300] or type(error).__name__}")
    return None


def _asked(name: HubName, call: Any, *arguments: Any, **options: Any) -> Any:
    """What a function of ``huggingface_hub`` returns; its errors in one sentence."""
    try:
        return call(*arguments, **options)
    except Exception as error:
        said = asked_hub(str(name), error)
        if said is None:
            raise
        raise said from error


def _listed(hub: Any, name: HubName) -> list[str]:
    """Files of the repository; where the hub cannot be reached, those in the cache."""
    cached = _cached_files(name)
    if cached and re.fullmatch(r"[0-9a-f]{40}", name.revision or ""):
        return cached
    try:
        info = _asked(name, hub.HfApi().model_info, name.repo, revision=name.revision)
    except InputError as error:
        kinds = {kind.__name__ for kind in type(error.__cause__).__mro__}
        if cached and kinds & {"TransportError", "OfflineModeIsEnabled", "ConnectionError"}:
            return cached
        raise
    return [entry.rfilename for entry in info.siblings or ()]


def _cached_files(name: HubName) -> list[str]:
    """Files of a revision in the cache, whose layout huggingface_hub documents."""
    constants = require("huggingface_hub.constants", extra="hub", purpose=f"fetch {name}")
    folder = Path(constants.HF_HUB_CACHE, f"models--{name.repo.replace('/', '--')}")
    revision = name.revision or "main"
    reference = folder / "refs" / revision
    if reference.is_file():
        revision = reference.read_text("utf-8").strip()
    snapshot = folder / "snapshots" / revision
    return sorted(path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file())


def _choose(name: HubName, files: Sequence[str], suffixes: Sequence[str]) -> list[str]:
    """The one model among the files; a split one has two."""
    for suffix in [suffixes] if tuple(suffixes) == MODELS else [[each] for each in suffixes]:
        fitting = [file for file in files if file.endswith(tuple(suffix)) and ".." not in file.split("/")]
        whole = [file for file in fitting if not file.endswith(_HALVES[1])]
        if len(whole) == 1:
            return whole
        if whole:
            raise InputError(f"{name} has several models: name one of {', '.join(f'{name}/{file}' for file in whole)}")
    raise InputError(f"{name} has no file {' or '.join(suffixes)}; there are {', '.join(files[:8]) or 'none'}")


def _snapshot(path: Path) -> str:
    found = _CACHED.search(path.absolute().as_posix())
    return found[3] if found else ""


def _git_sha1(path: Path) -> str:
    """SHA-1 of a file as a git object, which is an identity here and no protection."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with open(path, "rb") as file:
        while part := file.read(_CHUNK):
            digest.update(part)
    return digest.hexdigest()
