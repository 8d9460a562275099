"""``cats serve`` as a process of its own, and requests to it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).parent.parent
SECONDS = 120


@dataclass(frozen=True)
class Answer:
    """Status, headers in lower case, and body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body's JSON."""
        return json.loads(self.body)


@dataclass
class Server:
    """A running server with the lines of its log."""

    process: subprocess.Popen[str]
    url: str
    lines: list[str] = field(default_factory=list)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        parts = urlsplit(self.url)
        return str(parts.hostname), int(parts.port or 0)

    def ask(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Answer:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection(*self.address, timeout=SECONDS)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return Answer(answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def post(self, path: str, document: Any, **headers: str) -> Answer:
        """Post JSON."""
        return self.ask("POST", path, json.dumps(document).encode(), {"Content-Type": "application/json", **headers})

    def form(self, path: str, fields: dict[str, Any], *, method: str = "POST", **headers: str) -> Answer:
        """Send a multipart form; a value of (name, bytes) is a file."""
        body, kind = multipart(fields)
        return self.ask(method, path, body, {"Content-Type": kind, **headers})

    def events(self) -> list[dict[str, Any]]:
        """The JSON lines of the log so far."""
        return [json.loads(line) for line in self.lines if line.startswith("{")]

    def stop(self) -> int:
        """Send SIGTERM and wait; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(SECONDS)


def multipart(fields: dict[str, Any]) -> tuple[bytes, str]:
    """A multipart body and its content type."""
    parts = []
    for name, value in fields.items():
        head = f'--limit\r\nContent-Disposition: form-data; name="{name}"'
        if isinstance(value, tuple):
            head += f'; filename="{value[0]}"\r\nContent-Type: application/octet-stream'
            value = value[1]
        parts.append(head.encode() + b"\r\n\r\n" + (value if isinstance(value, bytes) else str(value).encode()))
    return b"\r\n".join(parts) + b"\r\n--limit--\r\n", "multipart/form-data; boundary=limit"


@contextmanager
def serving(
    *arguments: object, ready: bool = True, command: list[str] | None = None, cwd: Path = ROOT, **environment: str
) -> Iterator[Server]:
    """Run ``cats serve`` with these arguments, or ``command``, on a free port until the block ends."""
    command = command or [
        sys.executable,
        "-m",
        "cats.serving.commands.serve",
        "--port",
        "0",
        *map(str, arguments),
    ]
    process = subprocess.Popen(command, cwd=cwd, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})
    server = Server(process, "")
    assert process.stderr is not None
    for line in process.stderr:
        server.lines.append(line)
        if '"listening"' in line:
            server.url = json.loads(line)["url"].replace("0.0.0.0", "127.0.0.1")
            break
    else:
        raise AssertionError("".join(server.lines))
    reader = threading.Thread(target=lambda: server.lines.extend(process.stderr), daemon=True)
    reader.start()
    try:
        until = time.monotonic() + SECONDS
        while ready and server.ask("GET", "/v2/health/ready").status != 200:
            assert time.monotonic() < until
            time.sleep(0.1)
        yield server
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        reader.join(10)
