"""A hub on 127.0.0.1 that speaks the protocol of huggingface_hub, as far as downloads and uploads of models need it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

_LARGE = 10_000  # bytes from which a file is kept by its SHA-256


@dataclass
class Repository:
    """Commits of one repository, the last one is ``main``: commit -> files by name."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes]) -> str:
        """Add files on top of what is there."""
        name = hashlib.sha1(f"{len(self.commits)} {sorted(files)}".encode()).hexdigest()
        self.commits[name] = {**self.files("main"), **files}
        return name

    def resolve(self, revision: str) -> str | None:
        """The commit that a revision names."""
        if revision == "main":
            return next(reversed(self.commits), None)
        return revision if revision in self.commits else None

    def files(self, revision: str) -> dict[str, bytes]:
        """Files of a revision; none of an unknown one."""
        return self.commits.get(self.resolve(revision) or "", {})


class Hub:
    """The server; ``address`` is what ``HF_ENDPOINT`` takes."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.uploads: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.damage = False  # serve large files with a byte changed
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def answer(self, status: int, body: Any = b"", **headers: str) -> None:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            headers = {"Content-Length": str(len(content)), **{k.replace("_", "-"): v for k, v in headers.items()}}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def route(self) -> None:
            path = urlsplit(self.path).path
            hub.requests.append(f"{self.command} {unquote(path)}")
            if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self.file(*map(unquote, found.groups()))
            elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/revision/([^/]+))?", path):
                self.info(found[1], unquote(found[2] or "main"))
            elif path == "/api/repos/create":
                asked = json.loads(self.body())
                name = f"{asked.get('organization') or 'me'}/{asked['name']}"
                new = name not in hub.repositories
                hub.repositories.setdefault(name, Repository())
                self.answer(200 if new else 409, {"url": f"{hub.address}/{name}", "error": "exists"})
            elif path == "/api/validate-yaml":
                self.body()
                self.answer(200, {"errors": [], "warnings": []})
            elif "/preupload/" in path:
                files = json.loads(self.body())["files"]
                modes = [
                    {"path": file["path"], "shouldIgnore": False}
                    | {"uploadMode": "lfs" if file["size"] >= _LARGE else "regular"}
                    for file in files
                ]
                self.answer(200, {"files": modes})
            elif path.endswith("/info/lfs/objects/batch"):
                objects = json.loads(self.body())["objects"]
                made = [
                    item | {"actions": {"upload": {"href": f"{hub.address}/upload/{item['oid']}"}}} for item in objects
                ]
                self.answer(200, {"transfer": "basic", "objects": made})
            elif found := re.fullmatch(r"/upload/(\w{64})", path):
                content = self.body()
                assert hashlib.sha256(content).hexdigest() == found[1]
                hub.uploads[found[1]] = content
                self.answer(200)
            elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", path):
                self.commit(found[1])
            else:
                self.answer(404, {"error": f"no {path}"})

        do_GET = do_HEAD = do_POST = do_PUT = route  # noqa: N815

        def commit(self, name: str) -> None:
            files: dict[str, bytes] = {}
            for line in self.body().splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    files[value["path"]] = hub.uploads[value["oid"]]
            commit = hub.repositories[name].commit(files)
            self.answer(200, {"commitUrl": f"{hub.address}/{name}/commit/{commit}", "commitOid": commit})

        def info(self, name: str, revision: str) -> None:
            repository = hub.repositories.get(name)
            if repository is None:
                self.answer(401, {"error": "no"}, X_Error_Code="RepoNotFound")
                return
            commit = repository.resolve(revision)
            if commit is None:
                self.answer(404, {"error": "no"}, X_Error_Code="RevisionNotFound")
                return
            siblings = [{"rfilename": file} for file in repository.files(commit)]
            self.answer(200, {"id": name, "sha": commit, "siblings": siblings})

        def file(self, name: str, revision: str, path: str) -> None:
            repository = hub.repositories.get(name)
            if repository is None:
                self.answer(401, {"error": "no"}, X_Error_Code="RepoNotFound")
                return
            commit = repository.resolve(revision)
            if commit is None:
                self.answer(404, {"error": "no"}, X_Error_Code="RevisionNotFound")
                return
            content = repository.files(commit).get(path)
            if content is None:
                self.answer(404, {"error": "no"}, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
                return
            digest = (
                hashlib.sha256(content)
                if len(content) >= _LARGE
                else hashlib.sha1(f"blob {len(content)}\0".encode() + content)
            ).hexdigest()
            if hub.damage and len(content) >= _LARGE:
                content = content[:-1] + bytes([content[-1] ^ 1])
            self.answer(200, content, ETag=f'"{digest}"', X_Repo_Commit=commit)

    return Handler
