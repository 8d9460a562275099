"""``cats serve``: the page and the HTTP API on this machine's backend."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from cats.assets import find_model
from cats.core.console import execute, new_app, note
from cats.core.errors import InputError
from cats.core.images import quiet_pillow
from cats.core.metadata import read_onnx_metadata, trust_warning
from cats.labelling.formats import read_annotations
from cats.labelling.gather import check_references
from cats.runtime.backends import choose_backend
from cats.runtime.commands.options import (
    ENGINE,
    Backend,
    Device,
    Precision,
    Provider,
    cpu_streams,
    open_matcher,
)
from cats.runtime.hardware import physical_cores, usable_cpus
from cats.runtime.split import find_split
from cats.serving.web import read_samples, with_probabilities_file

app = new_app(extra="serve")

EXAMPLES = """
Examples:

- `cats serve` serves cats-tiny: the page on http://127.0.0.1:8000, the API's description on /docs

- `cats serve best.onnx --backend openvino --port 9000 --pairs samples.csv`

- `curl -F a=@a.jpg -F b=@b.jpg -F 'points=[[120, 80]]' http://127.0.0.1:8000/v1/match`

- `CATS_SERVE_TOKEN=... cats serve best.plan --host 0.0.0.0 --allow-host match.example.org --max-batch 8`
"""
NETWORK, LIMITS = "Network", "Limits"
TOKEN = "CATS_SERVE_TOKEN"


def _option(*names: str, help: str, panel: str, default: bool | str = True, **settings: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=default, **settings)


@app.command(epilog=EXAMPLES)
def main_command(
    model: Annotated[
        Path | None,
        typer.Argument(
            help="ONNX file of cats-export (pair, or split), or .plan of cats-build. Default: cats-tiny.",
            metavar="MODEL",
            show_default=False,
        ),
    ] = None,
    host: Annotated[
        str, _option(help="Address to listen on; 0.0.0.0 for every network.", panel=NETWORK, metavar="ADDRESS")
    ] = "127.0.0.1",
    port: Annotated[int, _option(help="Port; 0 takes a free one.", panel=NETWORK, min=0, max=65535)] = 8000,
    allow_host: Annotated[
        list[str] | None,
        _option(
            help="Name by which the server may be addressed; repeatable.",
            panel=NETWORK,
            metavar="NAME",
            default="this machine's own where it listens on 127.0.0.1, else any",
        ),
    ] = None,
    cors: Annotated[
        list[str] | None,
        _option(
            help="Origin whose pages may read answers, or *; repeatable.",
            panel=NETWORK,
            metavar="ORIGIN",
            default="none",
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        _option(
            help=f"File with the token that callers of the API must send; or set {TOKEN}.",
            panel=NETWORK,
            metavar="FILE",
            default="no token",
        ),
    ] = None,
    name: Annotated[
        str | None,
        _option("--name", help="Name of the model in /v2.", panel=NETWORK, metavar="NAME", default="the file's stem"),
    ] = None,
    pairs: Annotated[
        Path | None,
        _option(
            help="CSV with columns a,b and optionally points and label: the page's sample pairs.",
            panel=NETWORK,
            metavar="FILE",
            default="the shipped photos",
        ),
    ] = None,
    references: Annotated[
        Path | None,
        _option(
            help="Labelled photos, in any format of cats label, whose labels /v1/label carries to others.",
            panel=NETWORK,
            metavar="FILE",
            default="none",
        ),
    ] = None,
    max_body_mb: Annotated[float, _option(help="Megabytes of one request.", panel=LIMITS, min=0.001)] = 32,
    max_megapixels: Annotated[
        float, _option(help="Refuse larger images before decoding.", panel=LIMITS, min=0.001)
    ] = 40,
    max_queue: Annotated[int, _option(help="Requests that wait; further ones get 429.", panel=LIMITS, min=1)] = 64,
    max_gallery: Annotated[int, _option(help="Photos that the gallery keeps.", panel=LIMITS, min=1)] = 1000,
    timeout: Annotated[float, _option(help="Seconds for an answer, waiting included.", panel=LIMITS, min=0.1)] = 30,
    body_timeout: Annotated[float, _option(help="Seconds for a body to arrive.", panel=LIMITS, min=0.1)] = 20,
    max_batch: Annotated[
        int | None,
        _option(help="Pairs of one run of the model at most.", panel=ENGINE, min=1, default="8 on a GPU, 1 on a CPU"),
    ] = None,
    max_delay_ms: Annotated[
        float, _option(help="Milliseconds that a request waits for others to share its run.", panel=ENGINE, min=0)
    ] = 2,
    streams: Annotated[
        int | None,
        _option(
            help="Pairs matched side by side, on CPUs each with its share of the cores.",
            panel=ENGINE,
            min=1,
            default="one per core on a CPU, else 1",
        ),
    ] = None,
    backend: Backend = None,
    provider: Provider = None,
    device: Device = None,
    precision: Precision = None,
    threads: Annotated[
        int | None, _option(help="CPU threads of one run.", panel=ENGINE, min=1, default="the cores shared out")
    ] = None,
) -> None:
    """Serve the page and the HTTP API: matches, features, and the Open Inference Protocol."""
    from cats.serving.server.app import ServerOptions, check_options, create_app
    from cats.serving.server.guards import Metrics
    from cats.serving.server.process import serve
    from cats.serving.service import Service, check_batch

    quiet_pillow()
    file = find_model(model or "cats-tiny")
    loopback = host in ("127.0.0.1", "localhost", "::1")
    hosts = tuple(allow_host or ()) + (("127.0.0.1", "localhost", "::1") if loopback or allow_host else ())
    options = ServerOptions(
        max_body=round(max_body_mb * 1e6),
        timeout_s=timeout,
        body_timeout_s=body_timeout,
        max_gallery=max_gallery,
        token=_read_token(token_file),
        cors=tuple(cors or ()),
        hosts=hosts or None,
    )
    check_options(options)
    samples = read_samples(pairs) if pairs is not None else None
    labelled = check_references(read_annotations(references), references) if references is not None else None
    metrics = Metrics()
    listening = _listen(host, port)
    with tempfile.TemporaryDirectory() as folder:
        opened = _with_probabilities(file, Path(folder))
        runs_on = choose_backend((find_split(opened) or (opened,))[0], backend)
        if streams is None:
            streams = cpu_streams(runs_on, provider, device)
        if streams > 1 and threads is None and runs_on != "openvino":
            threads = max(1, min(physical_cores(), usable_cpus()) // streams)
        matcher = open_matcher(
            opened,
            backend,
            max_megapixels,
            provider=provider,
            device=device,
            precision=precision,
            hint="throughput" if runs_on == "openvino" and streams > 1 else None,
            threads=threads,
        )
    with matcher:
        largest = max_batch or matcher.backend.gallery_batch
        check_batch(matcher, largest)
        service = Service(
            matcher,
            streams=streams,
            max_batch=largest,
            max_delay_ms=max_delay_ms,
            max_queue=max_queue,
            on_batch=metrics.on_batch,
        )
        try:
            application = create_app(
                service, options, name=name or _plain_stem(file), metrics=metrics, samples=samples, references=labelled
            )
            warning = trust_warning(matcher.metadata, file)
            if warning:
                note(warning)
            note(f"{file}: {matcher.backend.describe()}, {streams} streams, batches of up to {largest}")
            serve(application, listening, grace=timeout)
        finally:
            service.close()


def _listen(host: str, port: int) -> socket.socket:
    """The socket to serve on; taken before the model is loaded, which takes longer."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot listen on {host}:{port}: {reason}; --port 0 takes a free port") from error


def _with_probabilities(file: Path, folder: Path) -> Path:
    """A copy of an ONNX file for pairs that also gives its probabilities, for the page; another file as it is."""
    if find_split(file) is not None or file.suffix.lower() != ".onnx" or read_onnx_metadata(file).kind != "pair":
        return file
    copy = folder / file.name
    with_probabilities_file(file, copy)
    return copy


def _read_token(file: Path | None) -> str | None:
    if file is None:
        token = os.environ.get(TOKEN)
    else:
        try:
            token = file.read_text("utf-8").strip()
        except (OSError, UnicodeError) as error:
            raise InputError(f"cannot read the token file {file}: {error}") from error
    if token is not None and len(token) < 8:
        raise InputError(f"the token has {len(token)} characters: at least 8 are needed")
    return token


def _plain_stem(file: Path) -> str:
    stem = file.name.removesuffix(file.suffix)
    for kind in (".encoder", ".matcher"):
        stem = stem.removesuffix(kind)
    return "".join(character if character.isalnum() or character in "._-" else "_" for character in stem) or "cats"


def main() -> None:
    """Entry point."""
    execute(app)


if __name__ == "__main__":
    main()
