"""What the compiler makes of the correlation kernels for each GPU: registers, shared memory, spills, tensor cores.

Needs no GPU: Triton compiles to PTX, its own ``ptxas`` to machine code, its ``cuobjdump`` lists that. Registers above
255 or any spill would say that a tile is too large; no tensor-core instruction in float16, that the product is not
computed where it should be.

Usage: python -m cats.benchmarks.studies.kernel_machine_code [--output benchmarks/results/kernel-machine-code.json]
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from cats.benchmarks.record import RESULTS, describe_run, write_record
from cats.core.console import execute, new_app, stdout, table
from cats.core.errors import BackendError
from cats.export.kernels.compiled import CompiledKernel, compile_kernels

app = new_app()
CAPABILITIES = (80, 86, 89, 90, 120)
SPAIR = (64, *[1024] * 7)  # channels of the published levels
CELLS = 256
_TENSOR_CORES = re.compile(r"\b(HMMA|HGMMA|QGMMA|UTCHMMA|UTCQMMA)\b")


def find_tool(name: str, capability: int) -> str:
    """A tool of CUDA in Triton's package; that for Blackwell where there are two.

    Raises:
        BackendError: this Triton has none.
    """
    import triton

    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    for candidate in ([f"{name}-blackwell"] if capability >= 100 else []) + [name]:
        if (folder / candidate).is_file():
            return str(folder / candidate)
    raise BackendError(f"triton {triton.__version__} has no {name}: pip install triton")


def assemble(kernel: CompiledKernel, capability: int) -> dict[str, Any]:
    """Machine code of a kernel: registers, dynamic shared memory and spills in bytes, tensor-core instructions."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(kernel.ptx)
        suffix = "a" if capability in (90, 120) and f"sm_{capability}a" in kernel.ptx else ""
        done = subprocess.run(
            [find_tool("ptxas", capability), "-v", f"-arch=sm_{capability}{suffix}", str(source), "-o", str(target)],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise BackendError(f"ptxas refuses {kernel.name} for sm_{capability}: {done.stderr.strip()[-300:]}")
        listing = subprocess.run(
            [find_tool("cuobjdump", capability), "-sass", str(target)], capture_output=True, text=True, check=True
        ).stdout
    registers = re.findall(r"Used (\d+) registers", done.stderr)
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", done.stderr)
    return {
        "registers": max(map(int, registers)),
        "shared_bytes": kernel.shared_bytes,
        "threads": kernel.threads,
        "spill_bytes": sum(map(int, spills)),
        "tensor_core_instructions": dict(Counter(_TENSOR_CORES.findall(listing))),
    }


def measure() -> dict[str, Any]:
    """Both kernels for every GPU in both precisions: ``sm_80`` -> ``fp16 scores`` -> figures."""
    found: dict[str, Any] = {}
    for capability in CAPABILITIES:
        row = found[f"sm_{capability}"] = {}
        for half in (True, False):
            kernels = compile_kernels(SPAIR, CELLS, half=half, capability=capability)
            for name, kernel in zip(("scores", "filter"), kernels, strict=True):
                row[f"{'fp16' if half else 'fp32'} {name}"] = assemble(kernel, capability)
    return found


@app.command()
def main_command(
    output: Annotated[Path, typer.Option(help="JSON file for the figures.")] = RESULTS / "kernel-machine-code.json",
) -> None:
    """Compile the kernels for each GPU and record what the compiler says."""
    found = measure()
    rows = [
        [f"{gpu} {name}", *(str(value[key]) for key in ("registers", "shared_bytes", "spill_bytes")),
         " ".join(f"{count} {what}" for what, count in value["tensor_core_instructions"].items()) or "-"]
        for gpu, kernels in found.items()
        for name, value in kernels.items()
    ]  # fmt: skip
    stdout.print(table("correlation kernels", ["kernel", "registers", "shared", "spilled", "tensor cores"], rows))
    write_record(output, {**describe_run("kernel_machine_code", ["triton"]), "levels": list(SPAIR), "kernels": found})


if __name__ == "__main__":
    execute(app)
