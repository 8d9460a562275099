"""What ``cats serve`` adds to the matcher, and what it bears: throughput, latency, hostile requests, SIGTERM.

Throughput is compared with ``match_many`` in this process on the same backend, streams and photos, in turns; the
clients are threads of this process on the same cores. Latency is measured at half of that throughput, with exponential
gaps between arrivals. Nothing else may run beside it.

Usage: python -m cats.benchmarks.studies.serving [MODEL.onnx] [--seconds 60] [--output NAME.json]
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import itertools
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import numpy as np
import typer

from cats.assets import asset
from cats.benchmarks.record import REPOSITORY, describe_run, write_record
from cats.core.console import execute, new_app, note, print_json
from cats.core.errors import BackendError
from cats.runtime import Matcher
from cats.runtime.hardware import physical_cores, usable_cpus

app = new_app()

_A, _B = asset("astronaut.jpg").read_bytes(), asset("grace_hopper.jpg").read_bytes()
_ROUNDS = 3
_CLIENTS = 8
_JSON = {"Content-Type": "application/json"}
_PAIR = json.dumps(
    {"a": base64.b64encode(_A).decode(), "b": base64.b64encode(_B).decode(), "points": [[203, 101]]}
).encode()


@app.command()
def serving(
    model: Annotated[Path, typer.Argument(help="ONNX file of kind pair.")] = asset("cats-tiny.onnx"),  # noqa: B008
    seconds: Annotated[float, typer.Option(help="Seconds of each measurement.", min=1)] = 60,
    hostile: Annotated[int, typer.Option(help="Hostile requests.", min=100)] = 10_000,
    output: Annotated[Path | None, typer.Option(help="Write the figures as JSON.", show_default=False)] = None,
) -> None:
    """Measure the server on 127.0.0.1."""
    streams = min(physical_cores(), usable_cpus())
    result: dict[str, Any] = {
        **describe_run("serving", ["onnxruntime", "starlette", "uvicorn"], streams),
        "model": model.name,
        "streams": streams,
        "photos": "the two shipped portraits, as JPEG in JSON",
    }
    with Matcher(model, "onnxruntime", provider="cpu", threads=1) as matcher, run_server(model) as server:
        note(f"throughput: {_ROUNDS} rounds of match_many and server")
        rates: dict[str, list[float]] = {"match_many": [], "server": []}
        for _ in range(_ROUNDS):
            rates["match_many"].append(direct_rate(matcher, streams, seconds / _ROUNDS))
            rates["server"].append(len(closed_loop(server, seconds / _ROUNDS)) / (seconds / _ROUNDS))
        if not all(value for values in rates.values() for value in values):
            raise BackendError("no answer within a round: give more --seconds, or a machine with less beside it")
        result["pairs_per_second"] = {name: round(float(np.median(values)), 3) for name, values in rates.items()}
        ratios = [b / a for a, b in zip(rates["match_many"], rates["server"], strict=True)]
        result["server_to_match_many"] = {
            "median": round(float(np.median(ratios)), 3),
            "rounds": np.round(ratios, 3).tolist(),
        }
        note(f"latency at half load: {seconds:.0f} s")
        result["half_load"] = half_load(server, result["pairs_per_second"]["server"] / 2, seconds)
        note(f"{hostile} hostile requests")
        result["hostile"] = hostile_load(server, hostile)
    with run_server(model) as server:
        note("SIGTERM under load")
        result["sigterm"] = sigterm_under_load(server)
    print_json(result)
    if output is not None:
        write_record(output, result)


class Server:
    """A server process and its address; its log goes to ``log``."""

    def __init__(self, process: subprocess.Popen[str], address: tuple[str, int], log: list[str]):
        self.process, self.address, self.log = process, address, log

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """One request on a connection of its own: status and body."""
        connection = http.client.HTTPConnection(*self.address, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def memory_mb(self) -> float:
        """Resident memory of the process."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+)", text)
        return int(found[1]) / 1000 if found else float("nan")


@contextlib.contextmanager
def run_server(model: Path) -> Iterator[Server]:
    """``cats serve`` on a free port, warm."""
    command = [sys.executable, "-m", "cats.serving.commands.serve", str(model.resolve()), "--port", "0"]
    command += ["--body-timeout", "2", "--max-body-mb", "4"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    log: list[str] = []
    for line in process.stderr:
        log.append(line)
        if '"listening"' in line:
            break
    else:
        raise BackendError(f"cats serve did not start: {''.join(log)}")
    parts = urlsplit(json.loads(log[-1])["url"])
    threading.Thread(target=lambda: log.extend(process.stderr or ()), daemon=True).start()
    server = Server(process, (str(parts.hostname), int(parts.port or 0)), log)
    try:
        while server.ask("GET", "/v2/health/ready")[0] != 200:
            time.sleep(0.1)
        yield server
    finally:
        process.kill()
        process.wait()


def direct_rate(matcher: Matcher, streams: int, seconds: float) -> float:
    """Pairs a second of ``match_many`` on the photos' bytes."""
    start = time.perf_counter()
    count = 0
    pairs = itertools.takewhile(lambda _: time.perf_counter() - start < seconds, itertools.repeat((_A, _B)))
    for _ in matcher.match_many(pairs, streams=streams):
        count += 1
    return count / (time.perf_counter() - start)


def closed_loop(server: Server, seconds: float) -> list[float]:
    """Seconds of each answer to clients that ask again at once."""
    until = time.perf_counter() + seconds

    def client(_: int) -> list[float]:
        times = []
        connection = http.client.HTTPConnection(*server.address, timeout=60)
        while (start := time.perf_counter()) < until:
            connection.request("POST", "/v1/match", _PAIR, _JSON)
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise BackendError(f"the server answered {answer.status} under {_CLIENTS} clients")
            if time.perf_counter() <= until:
                times.append(time.perf_counter() - start)
        connection.close()
        return times

    with ThreadPoolExecutor(_CLIENTS) as pool:
        return [value for times in pool.map(client, range(_CLIENTS)) for value in times]


def half_load(server: Server, rate: float, seconds: float) -> dict[str, Any]:
    """Latencies of requests that arrive at a rate, whatever the answers take."""
    random_ = random.Random(0)
    times: list[float] = []
    statuses: Counter[int] = Counter()

    def ask(due: float) -> None:
        status, _ = server.ask("POST", "/v1/match", _PAIR, _JSON)
        times.append(time.perf_counter() - due)
        statuses[status] += 1

    with ThreadPoolExecutor(64) as pool:
        start = due = time.perf_counter()
        while due - start < seconds:
            due += random_.expovariate(rate)
            time.sleep(max(due - time.perf_counter(), 0))
            pool.submit(ask, due)
    median, p99 = np.percentile(np.asarray(times) * 1000, (50, 99))
    return {
        "requests_per_second": round(rate, 3),
        "requests": len(times),
        "statuses": {str(key): value for key, value in statuses.items()},
        "median_ms": round(float(median), 1),
        "p99_ms": round(float(p99), 1),
        "p99_to_median": round(float(p99 / median), 2),
    }


def hostile_load(server: Server, count: int) -> dict[str, Any]:
    """Send requests that are wrong in every way; statuses, memory before and after, and whether it still matches."""
    random_ = random.Random(1)
    kinds = list(_attacks(random_).items())
    statuses: Counter[str] = Counter()
    by_kind: Counter[str] = Counter()
    slow: list[socket.socket] = []
    memory = []
    for number in range(count):
        name, attack = kinds[number % len(kinds)]
        by_kind[name] += 1
        statuses[attack(server, slow)] += 1
        if number % (count // 10) == count // 10 - 1:
            for left in slow:
                left.close()
            slow.clear()
            memory.append(round(server.memory_mb(), 1))
            note(f"{number + 1}: {memory[-1]} MB")
    status, body = server.ask("POST", "/v1/match", _PAIR, _JSON)
    return {
        "requests": count,
        "kinds": len(kinds),
        "answers": dict(statuses.most_common()),
        "answers_500": statuses["500"],
        "memory_mb_each_tenth": memory,
        "matches_after": status == 200 and bool(json.loads(body)["matches"]),
    }


Attack = Callable[[Server, list[socket.socket]], str]


def _attacks(random_: random.Random) -> dict[str, Attack]:
    """Each sends one request and names its outcome: a status, ``closed`` or ``left open``."""

    def post(body: Callable[[], bytes], path: str = "/v1/match", **headers: str) -> Attack:
        given = {key.replace("_", "-"): value for key, value in headers.items()} or _JSON

        def attack(server: Server, _: list[socket.socket]) -> str:
            return _outcome(lambda: server.ask("POST", path, body(), given))

        return attack

    def raw(text: Callable[[], bytes], keep: bool = False) -> Attack:
        def attack(server: Server, slow: list[socket.socket]) -> str:
            with contextlib.suppress(OSError):
                connection = socket.create_connection(server.address, timeout=10)
                connection.sendall(text())
                if keep and len(slow) < 40:
                    slow.append(connection)
                    return "left open"
                connection.shutdown(socket.SHUT_WR)
                head = connection.recv(4000)
                connection.close()
                return head.split()[1].decode() if head.startswith(b"HTTP") else "closed"
            return "closed"

        return attack

    def random_json() -> bytes:
        values: list[Any] = [None, True, -1, 1e308, 10**400, "x" * 1000, [], {}, [[1, [2]]], "\ud800", [[1e400, 2]]]
        keys = ("a", "b", "points", "grid", "min_confidence", "max_forward_backward", "arrays", "name_a", "top")
        return json.dumps({key: random_.choice(values) for key in keys}).encode()

    def damaged_photo() -> bytes:
        data = bytearray(_A[: random_.randrange(20, len(_A))])
        for _ in range(20):
            data[random_.randrange(len(data))] = random_.randrange(256)
        return json.dumps({"a": base64.b64encode(data).decode(), "b": base64.b64encode(_B[:3000]).decode()}).encode()

    def form(names: tuple[str, str], truncate: int = 0) -> bytes:
        parts = [
            f'--limit\r\nContent-Disposition: form-data; name="{key}"; filename="{name}"\r\n\r\n'.encode()
            + _A[:2000]
            + b"\r\n"
            for key, name in zip("ab", names, strict=True)
        ]
        body = b"".join(parts) + b"--limit--\r\n"
        return body[: len(body) - truncate]

    multipart = "multipart/form-data; boundary=limit"
    binary = {"Content_Type": "application/octet-stream"}
    tensor = {"name": "image_a", "datatype": "FP32", "shape": [1, 3, 256, 256]}
    infer = "/v2/models/cats-tiny/infer"
    head = b"POST /v1/match HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return {
        "random JSON": post(random_json),
        "damaged photo": post(damaged_photo),
        "deep JSON": post(lambda: b"[" * random_.randrange(10, 200_000)),
        "random bytes as JSON": post(lambda: random_.randbytes(2000)),
        "random bytes as a form": post(lambda: random_.randbytes(2000), Content_Type=multipart),
        "truncated form": post(lambda: form(("a", "b"), random_.randrange(1, 4000)), Content_Type=multipart),
        "path tricks": post(lambda: form(("../../etc/passwd", "C:\\\\..\\\\x\x00.jpg")), Content_Type=multipart),
        "form without a boundary": post(lambda: form(("a", "b")), Content_Type="multipart/form-data"),
        "wrong type": post(lambda: b"x", Content_Type="application/xml"),
        "compressed": post(lambda: b"x", Content_Type="application/json", Content_Encoding="gzip"),
        "declared huge": raw(lambda: head + b"Content-Length: 99999999999999999999\r\n\r\n{"),
        "negative length": raw(lambda: head + b"Content-Length: -5\r\n\r\n{"),
        "broken chunks": raw(lambda: head + b"Transfer-Encoding: chunked\r\n\r\nZZZ\r\n"),
        "no HTTP": raw(lambda: random_.randbytes(300)),
        "long head": raw(lambda: b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n"),
        "slow head": raw(lambda: b"POST /v1/mat", keep=True),
        "slow body": raw(lambda: head + b"Content-Length: 500\r\n\r\n{", keep=True),
        "left early": raw(lambda: head + b"Content-Length: 500\r\n\r\n{"),
        "too large": post(lambda: b" " * 4_100_000),
        "path": raw(lambda: random_.choice(_PATHS) + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"),
        "tensor shapes": post(
            lambda: json.dumps({"inputs": [{**tensor, "shape": [10**15, -1, "x"]}, 5]}).encode(), infer
        ),
        "tensor sizes": post(
            lambda: json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": 10**12}}]}).encode(),
            infer,
            **binary,
        ),
        "tensor head": post(lambda: b"{}", infer, Inference_Header_Content_Length=str(random_.randrange(-5, 10**18))),
        "gallery names": post(lambda: b"{}", "/v1/gallery/match"),
    }


_PATHS = (
    b"GET /../../../etc/passwd", b"GET /%2e%2e/%2e%2e/etc/passwd", b"GET /%00", b"GET //", b"GET /v1/gallery/..%2f..",
    b"DELETE /v1/gallery/%ff", b"PUT /v1/match", b"GET /v2/models/%0d%0aX:1", b"OPTIONS *", b"TRACE /", b"GET http://x/",
)  # fmt: skip


def _outcome(ask: Callable[[], tuple[int, bytes]]) -> str:
    try:
        return str(ask()[0])
    except (OSError, http.client.HTTPException):
        return "closed"


def sigterm_under_load(server: Server) -> dict[str, Any]:
    """Send SIGTERM while clients ask without a pause, each request on a connection of its own.

    A request is lost if the server took its connection and gave no answer. Those whose connections were refused, or
    reset before the server saw them (its log names every request that it took), were not accepted.
    """
    outcomes: dict[str, str] = {}
    lock = threading.Lock()
    stop = threading.Event()

    def client(number: int) -> None:
        for turn in itertools.count():
            if stop.is_set():
                return
            name = f"r{number}-{turn}"
            try:
                connection = socket.create_connection(server.address, timeout=60)
            except OSError:
                return  # refused: the server listens no more
            outcome = "reset"
            with contextlib.suppress(OSError, http.client.HTTPException):
                over = http.client.HTTPConnection(*server.address)
                over.sock = connection
                over.request("POST", "/v1/match", _PAIR, {**_JSON, "X-Request-ID": name})
                outcome = str(over.getresponse().status)
            connection.close()
            with lock:
                outcomes[name] = outcome

    threads = [threading.Thread(target=client, args=(number,)) for number in range(2 * _CLIENTS)]
    for thread in threads:
        thread.start()
    time.sleep(3)
    os.kill(server.process.pid, signal.SIGTERM)
    code = server.process.wait(120)
    stop.set()
    for thread in threads:
        thread.join()
    time.sleep(0.2)
    log = "".join(server.log)
    reset = [name for name, outcome in outcomes.items() if outcome == "reset"]
    return {
        "exit_status": code,
        "answers": dict(Counter(outcomes.values())),
        "lost": sum(f'"{name}"' in log for name in reset),
        "reset_before_accepted": sum(f'"{name}"' not in log for name in reset),
    }


if __name__ == "__main__":
    execute(app)
