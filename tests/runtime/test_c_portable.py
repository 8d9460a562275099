"""libcats beyond Linux on x86-64: what differs is in one place, and zig's compiler takes it for each system.

Compiled for macOS and Windows; executed where it says so.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from c_programs import program
from exported_names import exported_names
from made_once import made_once

from cats.benchmarks import libcats
from cats.benchmarks.libcats import INCLUDE, ROOT, SOURCES, STRICT, compile_c

ZIG = [sys.executable, "-m", "ziglang"]
TARGETS = {
    "aarch64-linux-gnu.2.17": ("elf", "aarch64", "libcats.so"),
    "x86_64-linux-musl": ("elf", "x86_64", "libcats.so"),
    "x86_64-macos": ("macho", "x86_64", "libcats.dylib"),
    "aarch64-macos": ("macho", "aarch64", "libcats.dylib"),
    "x86_64-windows-gnu": ("pe", "x86_64", "cats.dll"),
    "aarch64-windows-gnu": ("pe", "aarch64", "cats.dll"),
}
FLAGS = ["-std=c11", "-O1", "-ffp-contract=off", *STRICT, "-Wshadow", "-Wstrict-prototypes"]
STANDARD = {"errno", "math", "stdarg", "stdatomic", "stddef", "stdint", "stdio", "stdlib", "string"}

needs_zig = pytest.mark.skipif(
    importlib.util.find_spec("ziglang") is None,
    reason="no cross-compiler: pip install ziglang (100 MB; `make wheels` has it in .venv-wheels)",
)


def code(path: Path) -> str:
    """A source without its comments."""
    return re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)


def sources() -> list[Path]:
    return sorted((ROOT / "src").glob("*.[ch]"))


def test_only_the_platform_files_know_the_system() -> None:
    others = [path for path in sources() if not path.name.startswith("platform")]
    assert len(sources()) - len(others) == 3
    for path in others:
        headers = set(re.findall(r"#include <(.+)\.h>", code(path)))
        assert headers <= STANDARD, path
        strange = r"_WIN32|__APPLE__|__linux__|_GNU_SOURCE|__attribute__|__builtin|_Thread_local|\bw?fopen\(|\bgetenv\("
        assert not re.search(strange, code(path)), path


def test_memory_of_libcats_goes_back_where_it_came_from() -> None:
    """On Windows, free() does not take aligned memory: nothing but the platform files may call it, or malloc()."""
    for path in sources():
        if not path.name.startswith("platform"):
            assert not re.search(r"(?<!\w)(free|malloc|calloc|realloc)\(", code(path)), path


def declared() -> list[str]:
    return sorted(re.findall(r"^CATS_API .*?\b(cats_\w+)\(", (ROOT / "include" / "cats.h").read_text(), re.MULTILINE))


def exports(library: Path) -> list[str]:
    """Names that a library exports, but those that zig's linker for macOS adds of its own."""
    return [name for name in exported_names(library)[2] if name not in ("__dso_handle", "_mh_dylib_header")]


@pytest.mark.skipif(not libcats.HAVE_COMPILER, reason="no C compiler")
def test_exports_are_read_right(tmp_path_factory: pytest.TempPathFactory) -> None:
    library = made_once(tmp_path_factory, "libcats", libcats.build_library) / "libcats.so"
    assert exports(library) == declared()


@pytest.mark.slow
@needs_zig
@pytest.mark.parametrize("target", TARGETS)
def test_library_and_examples_compile(target: str, tmp_path: Path) -> None:
    form, machine, name = TARGETS[target]
    library = tmp_path / name
    linked = tmp_path / "libcats.dll.a" if form == "pe" else library
    compiler = [*ZIG, "cc", "-target", target]
    flags = [
        *FLAGS,
        "-fvisibility=hidden",
        "-DCATS_BUILD",
        *([f"-Wl,--out-implib,{linked}"] if form == "pe" else ["-fPIC"]),
    ]
    compile_c([*compiler, *flags, *INCLUDE, *SOURCES, "-shared", "-o", library])
    assert exported_names(library)[:2] == (form, machine)
    assert exports(library) == declared()
    examples = ROOT / "examples"
    for example in ("match", "video"):
        files = [examples / f"{example}.c", examples / "read_image.c"]
        compile_c([*compiler, *FLAGS, INCLUDE[0], *files, linked, "-o", tmp_path / example])
        assert (tmp_path / example).stat().st_size
    cpp = [*ZIG, "c++", "-target", target, "-std=c++17", *STRICT, *INCLUDE, "-c"]
    compile_c([*cpp, examples / "raii.cpp", "-o", tmp_path / "raii.o"])
    # A program that has the sources among its own, as the engine example does.
    static = [*compiler, *FLAGS, "-DCATS_STATIC", *INCLUDE, "-c"]
    compile_c([*static, ROOT / "src" / "image.c", "-o", tmp_path / "image.o"])


PORTABLE = Path(__file__).parent / "c" / "portable.c"
NAME = "modèle ü 猫.onnx"


def facts(words: str) -> dict[str, str]:
    """What portable.c prints: a key and its value a line."""
    return dict(line.split(" ", 1) for line in words.splitlines())


def models(folder: Path, model_file: Path, scene: Path) -> list[Path]:
    shutil.copyfile(model_file, folder / NAME)
    return [model_file, scene / "tiny.encoder.onnx", folder]


@pytest.mark.skipif(not libcats.HAVE_COMPILER, reason="no C compiler")
def test_portable_program_here(tmp_path: Path, model_file: Path, scene: Path) -> None:
    run = tmp_path / "portable"
    compile_c([libcats.CC, *libcats.BASE, *INCLUDE, PORTABLE, *SOURCES, *libcats.LIBS, "-o", run])
    found = facts(program(run, *models(tmp_path, model_file, scene)))
    assert (found["mean"], found["folder"]) == ("485", "refused")
    assert found["cannot"] == "read nowhere.onnx: No such file or directory"


def wine() -> str | None:
    """Wine's loader for 64 bits."""
    places = [shutil.which("wine64"), "/usr/lib/wine/wine64", "/usr/lib64/wine/wine64"]
    return next((place for place in places if place and Path(place).is_file()), None)


@pytest.fixture(scope="module")
def windows_runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of ONNX Runtime for Windows, of the release that is installed here."""
    folder = tmp_path_factory.mktemp("windows")
    wanted = ["--no-deps", "--only-binary=:all:", "--platform", "win_amd64", "--python-version", "3.12"]
    release = f"onnxruntime=={metadata.version('onnxruntime')}"
    fetch = [sys.executable, "-m", "pip", "install", "-q", *wanted, "--target", folder, release]
    done = subprocess.run(list(map(str, fetch)), capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{release} for Windows cannot be fetched: {done.stderr[-300:]}")
    return folder / "onnxruntime" / "capi"


@pytest.mark.slow
@needs_zig
@pytest.mark.skipif(wine() is None, reason="no Wine (apt-get install wine64)")
def test_under_wine(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, windows_runtime: Path, model_file: Path, scene: Path
) -> None:
    """The program and libcats of Windows with ONNX Runtime of Windows, beside the same program of Linux."""
    compiler = [*ZIG, "cc", "-target", "x86_64-windows-gnu", *FLAGS, *INCLUDE]
    build, stub = tmp_path / "build", tmp_path / "build" / "libcats.dll.a"
    build.mkdir()
    compile_c([*compiler, "-DCATS_BUILD", f"-Wl,--out-implib,{stub}", *SOURCES, "-shared", "-o", build / "cats.dll"])
    compile_c([*compiler, PORTABLE, stub, "-o", build / "portable.exe"])
    files = models(tmp_path, model_file, scene)
    prefix = tmp_path_factory.mktemp("wine")
    settings = {**os.environ, "WINEPREFIX": str(prefix), "WINEDEBUG": "-all", "DISPLAY": ""}

    def run(folder: Path, status: int, **more: str) -> str:
        words = [str(wine()), str(build / "portable.exe"), *map(str, files)]
        done = subprocess.run(words, env={**settings, **more}, cwd=folder, capture_output=True, timeout=600)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout.decode().replace("\r", "")

    here = tmp_path / "here"
    compile_c([libcats.CC, *libcats.BASE, *INCLUDE, PORTABLE, *SOURCES, *libcats.LIBS, "-o", here])
    expected = facts(program(here, *files))
    settings["CATS_ORT_LIBRARY"] = ""
    assert "onnxruntime.dll: " in run(windows_runtime, 1)  # the working folder is not searched
    named = facts(run(tmp_path, 0, CATS_ORT_LIBRARY=str(windows_runtime)))
    assert named["comma"] == "yes"  # so that the numbers of the metadata were read in spite of it
    for key in ("ort", "mean", "folder", "cannot"):
        assert named[key] == expected[key]
    moved = np.array(named["place"].split(), int) - np.array(expected["place"].split(), int)
    assert np.abs(moved).max() <= 10  # thousandths of a pixel
    assert named["library"].endswith("onnxruntime.dll")
    shutil.copyfile(windows_runtime / "onnxruntime.dll", build / "onnxruntime.dll")
    assert facts(run(tmp_path, 0))["place"] == named["place"]  # found beside cats.dll


TOOLCHAINS = {
    "x86_64-windows-gnu": ("Windows", ["bin/libcats.dll", "lib/libcats.dll.a"], "app.exe"),
    "aarch64-macos": ("Darwin", ["lib/libcats.dylib"], "app"),
}
APP = "#include <cats.h>\n#include <stdio.h>\nint main(void) { puts(cats_version()); return 0; }\n"
CONSUMER = """cmake_minimum_required(VERSION 3.16)
project(app C)
find_package(cats 0.1 REQUIRED)
add_executable(app app.c)
target_link_libraries(app cats::cats)
"""


def toolchain(folder: Path, target: str) -> Path:
    """A CMake toolchain whose tools are zig's."""
    tools = {"C_COMPILER": f"cc -target {target}", "AR": "ar", "RANLIB": "ranlib", "RC_COMPILER": "rc"}
    system = {"NAME": TOOLCHAINS[target][0], "VERSION": "20.0.0", "PROCESSOR": target.partition("-")[0]}
    lines = [f"set(CMAKE_SYSTEM_{key} {value})" for key, value in system.items()]
    if system["NAME"] == "Darwin":  # what CMake learns from a tool of macOS
        (folder / "rules.cmake").write_text('set(CMAKE_SHARED_LIBRARY_RUNTIME_C_FLAG "-Wl,-rpath,")\n')
        lines.append(f'set(CMAKE_USER_MAKE_RULES_OVERRIDE "{folder / "rules.cmake"}")')
    for variable, words in tools.items():
        script = folder / variable.lower()
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -m ziglang {words} "$@"\n')
        script.chmod(0o755)
        lines.append(f'set(CMAKE_{variable} "{script}")')
    file = folder / "toolchain.cmake"
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.mark.slow
@needs_zig
@pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake")
@pytest.mark.parametrize("target", TOOLCHAINS)
def test_cmake_builds_installs_and_finds_it(target: str, tmp_path: Path) -> None:
    system, installed, name = TOOLCHAINS[target]
    tools, prefix, app = f"-DCMAKE_TOOLCHAIN_FILE={toolchain(tmp_path, target)}", tmp_path / "prefix", tmp_path / "app"
    for words in (
        ["-S", ROOT, "-B", tmp_path / "build", tools, "-DCMAKE_BUILD_TYPE=Release"],
        ["--build", tmp_path / "build"],
        ["--install", tmp_path / "build", "--prefix", prefix],
    ):
        compile_c(["cmake", *words])
    assert [name for name in installed if not (prefix / name).is_file()] == []
    assert exports(prefix / installed[0]) == declared()
    app.mkdir()
    (app / "app.c").write_text(APP)
    (app / "CMakeLists.txt").write_text(CONSUMER)
    found = f"-Dcats_DIR={prefix / 'lib' / 'cmake' / 'cats'}"
    compile_c(["cmake", "-S", app, "-B", app / "build", tools, found])
    compile_c(["cmake", "--build", app / "build"])
    linked = {"Windows": b"libcats.dll\0", "Darwin": b"@rpath/libcats.dylib\0"}[system]
    assert linked in (app / "build" / name).read_bytes()
