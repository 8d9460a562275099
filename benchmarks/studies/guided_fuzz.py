"""Do inputs that follow the readers' own branches do more than be refused? Coverage-guided fuzzing with atheris.

:mod:`cats.benchmarks.studies.fuzz_readers` mutates blindly; here libFuzzer keeps what reaches new lines of ``cats`` and
goes on from there. The same readers, seeds and property: an error of :mod:`cats.core.errors` or a result, in bounded
time and memory. Needs ``pip install atheris``, which has wheels for Linux.

Usage: python -m cats.benchmarks.studies.guided_fuzz [--seconds 60] [--reader metadata] [--output NAME.json]
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from cats.benchmarks.record import describe_run, write_record
from cats.benchmarks.studies.fuzz_readers import MEGABYTES, READERS
from cats.core.console import execute, new_app, note, stdout, table
from cats.core.errors import BackendError, InputError, VerificationError
from cats.core.process import child_environment

app = new_app()

_LONGEST = 1 << 16  # bytes of an input
_HANGS = 60  # seconds of the clock, not of computing: other work may slow it down
_STATUS = re.compile(r"^#(\d+)\s.*?cov: (\d+) ft: (\d+) corp: (\d+)/\S+.*?rss: (\d+)Mb", re.MULTILINE)


def fuzz(name: str, seconds: int, folder: Path, *, seed: int = 1) -> dict[str, Any]:
    """Fuzz one reader for a time.

    Returns:
        ``seconds``, ``inputs``, ``edges`` reached at the begin and at the end, ``kept`` inputs, ``peak_mb``, and
        ``found``: the last lines of what was neither read nor refused, empty where all was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={seconds}", f"-seed={seed}", f"-max_len={_LONGEST}", "-len_control=0"]
    options += [
        f"-timeout={_HANGS}",
        f"-rss_limit_mb={MEGABYTES}",
        f"-artifact_prefix={folder}/found-",
        "-print_final_stats=1",
    ]
    command = [sys.executable, "-m", "cats.benchmarks.studies.guided_child", name, str(folder), *options]
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", env=child_environment(), check=False
    )
    lines = [tuple(map(int, found)) for found in _STATUS.findall(done.stderr)]
    if not lines:
        raise BackendError(f"the fuzzer of {name} did not begin: {done.stderr.strip()[-300:]}")
    inputs, edges, _, kept, _ = lines[-1]
    wrong = "\n".join(done.stderr.splitlines()[-30:]) if done.returncode else ""
    return {
        "seconds": seconds,
        "inputs": inputs,
        "edges": [lines[0][1], edges],
        "kept": kept,
        "peak_mb": max(line[4] for line in lines),
        "found": wrong,
    }


@app.command()
def main_command(
    seconds: Annotated[int, typer.Option(help="Of each reader.", min=5)] = 60,
    reader: Annotated[list[str] | None, typer.Option(help=f"{', '.join(READERS)}; repeatable. Default: all.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Folder that keeps inputs.", show_default=False)] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the record.", show_default=False)] = None,
) -> None:
    """Fuzz the readers, guided by coverage; exit status 1 where something was neither read nor refused."""
    if importlib.util.find_spec("atheris") is None:
        raise BackendError("atheris is not installed: pip install atheris")
    names = reader or list(READERS)
    if unknown := set(names) - set(READERS):
        raise InputError(f"no reader {', '.join(sorted(unknown))}: choose {', '.join(READERS)}")
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in names:
            results[name] = fuzz(name, seconds, (keep or Path(temporary)) / name)
            note(f"{name}: {results[name]['inputs']} inputs, {'something found' if results[name]['found'] else 'fine'}")
            if output is not None:
                limits = {"seconds": _HANGS, "megabytes": MEGABYTES, "bytes": _LONGEST}
                run = describe_run("guided_fuzz", ("atheris", "pillow", "torch", "numpy"))
                write_record(output, {**run, "limits": limits, "readers": results})
    rows = [
        [
            name,
            str(r["inputs"]),
            f"{r['edges'][0]} -> {r['edges'][1]}",
            str(r["kept"]),
            str(r["peak_mb"]),
            r["found"][-80:],
        ]
        for name, r in results.items()
    ]
    stdout.print(table("guided inputs", ["reader", "inputs", "edges", "kept", "peak MB", "found"], rows))
    if any(result["found"] for result in results.values()):
        raise VerificationError("some inputs were neither read nor refused within the limits; see the record")


if __name__ == "__main__":
    execute(app)
