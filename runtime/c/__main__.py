"""``python -m cats.runtime.c``: flags and folders for building programs against the C library."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from cats.core.console import execute, new_app
from cats.core.errors import InputError
from cats.runtime import c

app = new_app()

EXAMPLES = """
Examples:

- `cc app.c $(python -m cats.runtime.c --cflags --libs) -o app`

- `cmake -Dcats_DIR=$(python -m cats.runtime.c --cmake-dir) ..` for `find_package(cats)`

- `export CATS_ORT_LIBRARY=$(python -m cats.runtime.c --onnxruntime)` for programs outside this environment
"""


@app.command(epilog=EXAMPLES)
def main_command(
    cflags: Annotated[bool, typer.Option("--cflags", help="Flags for compiling.")] = False,
    libs: Annotated[bool, typer.Option("--libs", help="Flags for linking.")] = False,
    include: Annotated[bool, typer.Option("--include", help="Folder of cats.h.")] = False,
    library: Annotated[bool, typer.Option("--library", help="File of libcats.so.")] = False,
    cmake_dir: Annotated[bool, typer.Option("--cmake-dir", help="Folder of cats-config.cmake.")] = False,
    pkgconfig_dir: Annotated[bool, typer.Option("--pkgconfig-dir", help="Folder of cats.pc.")] = False,
    onnxruntime: Annotated[bool, typer.Option("--onnxruntime", help="Folder of libonnxruntime.so.")] = False,
) -> None:
    """Print flags and folders for building C and C++ programs against libcats, on one line."""
    answers = (
        (cflags, c.compile_flags),
        (libs, c.link_flags),
        (include, c.get_include),
        (library, c.get_library),
        (cmake_dir, c.get_cmake_dir),
        (pkgconfig_dir, c.get_pkgconfig_dir),
        (onnxruntime, c.find_onnxruntime),
    )
    words = [answer() for asked, answer in answers if asked]
    if not words:
        raise InputError("nothing was asked for: give --cflags, --libs or another option of --help")
    sys.stdout.write(" ".join(words) + "\n")


def main() -> None:
    """Entry point of ``python -m cats.runtime.c``."""
    execute(app)


if __name__ == "__main__":
    main()
