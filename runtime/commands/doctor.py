"""``cats doctor``: what this machine has, which backends and providers work, why others do not, and the fix."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from cats import __version__
from cats.assets import asset
from cats.core.console import execute, new_app, print_json, stdout
from cats.core.errors import BackendError, CatsError, InputError, require
from cats.core.text import plain
from cats.runtime.backends import BACKENDS
from cats.runtime.backends.ort_providers import (
    PROVIDERS,
    available_providers,
    choose_provider,
    create_session,
    diagnose,
    installed_distributions,
)
from cats.runtime.backends.ort_session import first_line, import_onnxruntime
from cats.runtime.commands.compare_backends import recommend
from cats.runtime.hardware import cpu_features, cpu_name, nvidia, physical_cores, usable_cpus

READY, BUILD_ONLY, MISSING = "ready", "builds only", "no"

# y = Relu(x), float32 (n, 4), opset 13: the smallest question that a provider can be asked.
_PROBE = (
    b'\x08\x07\x12\x00:=\n\x0c\n\x01x\x12\x01y"\x04Relu\x12\x01tZ\x14\n\x01x\x12\x0f\n\r\x08\x01\x12\t\n\x03\x12\x01n\n'
    b"\x02\x08\x04b\x14\n\x01y\x12\x0f\n\r\x08\x01\x12\t\n\x03\x12\x01n\n\x02\x08\x04B\x04\n\x00\x10\r"
)

PACKAGES = (
    "numpy",
    "pillow",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-ep-nv-tensorrt-rtx-cu13",
    "openvino",
    "tensorrt-cu13",
    "tensorrt-rtx-cu13",
    "cuda-core",
    "pycuda",
    "onnx",
    "torch",
    "timm",
    "albumentations",
    "ray",
)

app = new_app()


@dataclass(frozen=True)
class Finding:
    """One backend or provider.

    Attributes:
        name: as given to ``--backend``, or ``onnxruntime --provider NAME``.
        status: ``ready``, ``builds only`` or ``no``.
        detail: version and device, or the reason and the fix.
    """

    name: str
    status: str
    detail: str


def doctor(*, measure: bool = False) -> dict[str, Any]:
    """Examine this installation.

    Args:
        measure: time the shipped model in every backend for CPUs, a few seconds; not where a GPU runs ONNX files.

    Returns:
        Plain JSON types: ``toolkit``, ``machine``, ``packages`` (name to version or None), ``backends`` (list of
        :class:`Finding` as dictionaries), ``choice`` (what runs which file by default), ``speed`` (of
        :func:`cats.runtime.commands.compare_backends.recommend`, None where not measured), ``warnings``.
    """
    findings = [*_onnxruntime(), *(_library(name) for name in BACKENDS if name != "onnxruntime")]
    runs = any(finding.status == READY for finding in findings)
    return {
        "toolkit": {"cats-toolkit": __version__, "python": platform.python_version(), "platform": platform.platform()},
        "machine": _machine(),
        "packages": {name: _version(name) for name in PACKAGES},
        "backends": [asdict(finding) for finding in findings],
        "choice": _choices(findings),
        "speed": recommend(asset("cats-tiny.onnx")) if measure and runs and not _on_gpu(findings) else None,
        "warnings": _warnings(),
    }


def _machine() -> dict[str, str]:
    driver = nvidia()
    gpus = ", ".join(
        f"{gpu.name} (compute capability {gpu.compute_capability[0]}.{gpu.compute_capability[1]}, "
        f"{gpu.memory_bytes / 2**30:.0f} GiB)"
        for gpu in driver.gpus
    )
    cuda = f", driver for CUDA {driver.cuda[0]}.{driver.cuda[1]}" if driver.cuda else ""
    return {
        "CPU": f"{cpu_name()}, {physical_cores()} cores, {usable_cpus()} CPUs usable here",
        "instruction sets": ", ".join(cpu_features()) or "unknown",
        "GPU": f"{gpus}{cuda}" if gpus else f"none: {driver.problem}",
    }


def _onnxruntime() -> list[Finding]:
    """ONNX Runtime, and each of its providers by really starting it."""
    try:
        ort = import_onnxruntime()
    except BackendError as error:
        return [Finding("onnxruntime", MISSING, str(error))]
    findings = []
    others = [name for name in available_providers(ort) if name not in (*PROVIDERS.values(), "AzureExecutionProvider")]
    for provider in [*PROVIDERS, *others]:
        problem = _provider_problem(ort, provider)
        status = MISSING if problem else READY
        findings.append(
            Finding(f"onnxruntime --provider {provider}", status, problem or f"onnxruntime {ort.__version__}")
        )
    return findings


def _provider_problem(ort: Any, wanted: str) -> str | None:
    try:
        provider, _ = choose_provider(ort, wanted)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        create_session(ort, _PROBE, options, provider, {})
    except CatsError as error:
        return str(error)
    except Exception as error:  # ONNX Runtime's exceptions have no base class of their own
        return diagnose(ort, PROVIDERS.get(wanted, wanted)) or first_line(error)
    return None


def _library(name: str) -> Finding:
    """A backend whose library is enough to build with, and that needs a GPU to run (TensorRT), or just a library."""
    entry = BACKENDS[name]
    try:
        library = require(entry.library, extra=entry.extra, purpose=f"use the backend {name}")
    except BackendError as error:
        return Finding(name, MISSING, str(error))
    version = f"{entry.library} {getattr(library, '__version__', '')}".strip()
    if entry.needs_gpu:
        problem = nvidia().problem
        if problem:
            return Finding(name, BUILD_ONLY, f"{version}; running needs an NVIDIA GPU: {problem}")
    return Finding(name, READY, version)


def _on_gpu(findings: list[Finding]) -> bool:
    return any(
        finding.status == READY and finding.name.endswith(("cuda", "tensorrt", "tensorrt-rtx")) for finding in findings
    )


def _choices(findings: list[Finding]) -> dict[str, str]:
    """What a file is run by when no backend is asked for."""
    choices = {}
    for suffix in dict.fromkeys(suffix for entry in BACKENDS.values() for suffix in entry.suffixes):
        names = [name for name, entry in BACKENDS.items() if suffix in entry.suffixes]
        ready = [f.name.partition(" ")[0] for f in findings if f.status == READY]
        usable = [name for name in names if name in ready]
        choices[suffix] = usable[0] if usable else f"nothing here; {' or '.join(names)} would, see above"
        if suffix == ".onnx" and usable[:1] == ["onnxruntime"]:
            provider, why = choose_provider(import_onnxruntime(), None)
            choices[suffix] = f"onnxruntime, {provider}: {why}"
    return choices


def _warnings() -> list[str]:
    warnings = []
    runtimes = installed_distributions()
    if len(runtimes) > 1:
        warnings.append(
            f"{' and '.join(runtimes)} are both installed and overwrite each other's files: "
            f"pip uninstall {' '.join(runtimes)}, then install the one you need"
        )
    if usable_cpus() < physical_cores():
        warnings.append(f"this process may use {usable_cpus()} of {physical_cores()} cores; latencies will show it")
    return warnings


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


@app.command(name="doctor")
def main_command(
    time: Annotated[
        bool,
        typer.Option("--time/--no-time", help="Time the shipped model in the backends for CPUs; a few seconds."),
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON document.")] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Print everything as Markdown, to paste into an issue.")
    ] = False,
) -> None:
    """Show what is installed here, which backends and providers work, which is fastest, why others do not, and the fix.

    Exit status 2 if no model can be run at all.
    """
    if as_json and report:
        raise InputError("--json and --report print the same: give one")
    found = doctor(measure=time)
    if as_json:
        print_json(found)
    elif report:
        typer.echo(markdown_report(found), nl=False)
    else:
        _show(found)
    if not any(finding["status"] == READY for finding in found["backends"]):
        raise BackendError("no backend works here; the smallest one: pip install 'cats-toolkit[cpu]'")


def markdown_report(found: dict[str, Any]) -> str:
    """What :func:`doctor` found as a folded block of Markdown, for an issue; paths in the home folder as ``~``."""
    lines = [f"{name}: {value}" for part in ("toolkit", "machine") for name, value in found[part].items()]
    lines.append(
        "packages: " + ", ".join(f"{name} {version}" for name, version in found["packages"].items() if version)
    )
    lines += ["", *(f"{finding['name']}: {finding['status']}; {finding['detail']}" for finding in found["backends"])]
    lines += ["", *(f"{suffix} files are run by {choice}" for suffix, choice in found["choice"].items())]
    if found["speed"] is not None:
        lines += [
            f"one pair of cats-tiny: {speed['name']} {speed['ms']:.0f} ms" for speed in found["speed"]["measured"]
        ]
    lines += [f"warning: {warning}" for warning in found["warnings"]]
    home = str(Path.home())
    text = "\n".join(plain(line).replace(home, "~") if home != "/" else plain(line) for line in lines)
    summary = f"cats doctor: cats-toolkit {__version__}"
    return f"<details><summary>{summary}</summary>\n\n```text\n{text.replace('```', '')}\n```\n\n</details>\n"


def _show(found: dict[str, Any]) -> None:
    facts = Table.grid(padding=(0, 2))
    for part in ("toolkit", "machine"):
        for name, value in found[part].items():
            facts.add_row(Text(name, "bold"), Text(plain(str(value))))
    packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items() if version)
    facts.add_row(Text("packages", "bold"), packages)
    facts.add_row("[dim]not installed[/dim]", ", ".join(k for k, version in found["packages"].items() if not version))
    stdout.print(facts)
    table = Table(title="Backends", title_justify="left")
    for column in ("backend", "works", "detail"):
        table.add_column(column, overflow="fold")
    colours = {READY: "green", BUILD_ONLY: "yellow", MISSING: "dim"}
    for finding in found["backends"]:
        colour = colours[finding["status"]]
        table.add_row(finding["name"], Text(finding["status"], colour), Text(plain(finding["detail"])))
    stdout.print(table)
    for suffix, choice in found["choice"].items():
        stdout.print(f"{suffix} files are run by {choice}", markup=False)
    if found["speed"] is not None:
        times = ", ".join(f"{speed['name']} {speed['ms']:.0f} ms" for speed in found["speed"]["measured"])
        if times:
            stdout.print(f"one pair of cats-tiny, measured by turns: {times}", markup=False)
        for line in found["speed"]["advice"]:
            stdout.print(line, markup=False)
    for warning in found["warnings"]:
        stdout.print(f"warning: {warning}", markup=False, style="yellow")


def main() -> None:
    """Entry point of ``python -m cats.runtime.commands.doctor``."""
    execute(app)


if __name__ == "__main__":
    main()
