"""Builds the C library ``libcats.so`` into the wheel, beside the package ``cats.runtime.c``.

Everything else is in pyproject.toml. ``CATS_NO_NATIVE=1``, another system than Linux, or no C compiler gives a pure
Python wheel, and a line that says so. ``CC`` and ``CFLAGS`` are honoured, for example
``CC="python -m ziglang cc -target x86_64-linux-gnu.2.17"`` for a library that runs on old systems too.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).parent
SOURCES = sorted(str(path.relative_to(HERE)) for path in (HERE / "runtime/c/src").glob("*.c"))
FLAGS = ["-std=c11", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-DCATS_BUILD"]
INCLUDES = ["-Iruntime/c/include", "-Iruntime/c/src"]
LINK = ["-shared", "-Wl,-soname,libcats.so", "-pthread", "-ldl", "-lm"]


def compiler() -> list[str]:
    """The C compiler as a command: ``CC``, else Python's own, else ``cc``."""
    named = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    words = shlex.split(named)
    return words if words and shutil.which(words[0]) else ["cc"]


def why_pure() -> str | None:
    """Why the C library is not built; ``None`` where it is."""
    if os.environ.get("CATS_NO_NATIVE", "0") not in ("", "0"):
        return "CATS_NO_NATIVE is set"
    if not sys.platform.startswith("linux"):
        return f"wheels have it for Linux, and this is {sys.platform}: cmake builds it from runtime/c"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "try.c")
        source.write_text("#include <dlfcn.h>\n#include <stdio.h>\nint cats_try(void) { return RTLD_NOW; }\n")
        command = [*compiler(), "-std=c11", "-fPIC", "-shared", str(source), "-o", str(Path(folder, "try.so"))]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return f"no working C compiler ({shlex.join(compiler())})"
    return None


class BuildLibrary(build_ext):
    """Compiles the one shared library with one command of the compiler."""

    def get_ext_filename(self, fullname: str) -> str:
        """Without the suffix of a Python extension, which it is not."""
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        """Compile and link in one go: the library is small."""
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        extra = shlex.split(os.environ.get("CFLAGS", ""))
        command = [*compiler(), *FLAGS, *extra, *INCLUDES, *SOURCES, *LINK, "-o", str(target)]
        self.announce(shlex.join(command), level=2)
        subprocess.run(command, check=True, cwd=HERE)


class TaggedWheel(bdist_wheel):
    """The library depends on the platform, and on no version of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        """``py3-none-PLATFORM``, or ``py3-none-any`` for the pure wheel."""
        python, abi, platform = super().get_tag()
        return ("py3", "none", platform) if self.distribution.has_ext_modules() else (python, abi, platform)


REASON = why_pure()
if REASON:
    print(f"cats-toolkit: libcats.so, the library for C and C++ programs, is not built: {REASON}", file=sys.stderr)

setup(
    ext_modules=[] if REASON else [Extension("cats.runtime.c.libcats", SOURCES)],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": TaggedWheel},
)
