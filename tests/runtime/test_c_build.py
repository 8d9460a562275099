"""The header, the exported ABI, the examples and every way of building against libcats."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from c_programs import program
from made_once import made_once
from split_onnx import save_split

import cats
from cats.benchmarks import libcats
from cats.benchmarks.libcats import CC, ROOT, STRICT, compile_c
from cats.core.errors import InputError
from cats.runtime import Matcher, c
from cats.runtime.c.sdk import write_sdk

pytestmark = pytest.mark.skipif(not libcats.HAVE_COMPILER, reason="no C compiler")

REPOSITORY = Path(__file__).resolve().parents[2]
versions = {item.name: item.version for item in metadata.distributions(name="setuptools")}
HEADER_USE = "#include <cats.h>\n#include <cats.h>\nint main(void) { return cats_version() == NULL; }\n"
VALUES = "cats_image i = CATS_IMAGE(NULL, 1, 2, CATS_RGB); cats_options o = CATS_OPTIONS; cats_info f = CATS_INFO;\n"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "libcats", libcats.build_library) / "libcats.so"


@pytest.mark.parametrize("standard", ["c99", "c11", "c17", "c++17"])
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_header_compiles_without_a_warning(tmp_path: Path, standard: str, compiler: str) -> None:
    name = compiler.replace("gcc", "g++").replace("clang", "clang++") if "+" in standard else compiler
    if shutil.which(name) is None:
        pytest.skip(f"no {name}")
    source = tmp_path / ("use.cpp" if "+" in standard else "use.c")
    source.write_text(HEADER_USE + VALUES)
    compile_c([name, f"-std={standard}", *STRICT, "-Wconversion", f"-I{ROOT / 'include'}", "-fsyntax-only", source])


@pytest.mark.parametrize("standard", ["c99", "c++17"])
def test_examples_in_the_header_compile(tmp_path: Path, standard: str) -> None:
    comment = (ROOT / "include" / "cats.h").read_text().partition("*/")[0]
    code = [line.removeprefix(" *     ") for line in comment.splitlines() if line.startswith(" *     ")]
    first, _, second = "\n".join(code).partition("cats_context_destroy(context);\ncats_close(matcher);\n")
    assert second
    given = "static unsigned char pixels_a[64 * 48 * 3], pixels_b[64 * 48 * 3];\n"
    sizes = "int width_a = 64, height_a = 48, width_b = 64, height_b = 48;\n"
    source = tmp_path / ("example.cpp" if "+" in standard else "example.c")
    end = "cats_context_destroy(context);\ncats_close(matcher);\nreturn 0;\n}\n"
    source.write_text(
        "#include <stdio.h>\n"
        + first.partition("\n")[0]
        + f"\nint main(void) {{\n{given}{sizes}"
        + first.partition("\n")[2]
        + second
        + end
    )
    compiler = "g++" if "+" in standard else CC
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    compile_c([compiler, f"-std={standard}", *STRICT, f"-I{ROOT / 'include'}", "-fsyntax-only", source])


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_sources_compile_without_a_warning(tmp_path: Path, compiler: str) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    libcats.build_library(tmp_path, "-Wshadow", "-Wstrict-prototypes", compiler=compiler)


def exported(library: Path) -> list[str]:
    listing = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True)
    return sorted(line.split()[-1] for line in listing.stdout.splitlines())


def test_only_the_functions_of_the_header_are_exported(library: Path) -> None:
    declared = re.findall(r"^CATS_API .*?\b(cats_\w+)\(", (ROOT / "include" / "cats.h").read_text(), re.MULTILINE)
    assert exported(library) == sorted(declared)


def test_nothing_in_the_library_can_print_exit_or_abort(library: Path) -> None:
    listing = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True)
    used = {line.split()[-1].partition("@")[0] for line in listing.stdout.splitlines()}
    banned = {"abort", "exit", "_exit", "printf", "fprintf", "puts", "putchar", "perror", "stdout", "stderr", "signal"}
    assert not used & banned
    assert not any(name.startswith(("Ort", "_Z")) for name in used)


def test_needs_nothing_but_libc(library: Path) -> None:
    listing = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True)
    needed = set(re.findall(r"\(NEEDED\).*\[(.+?)\.so", listing.stdout))
    assert needed <= {"libc", "libm", "libdl", "libpthread", "ld-linux-x86-64"}


def test_abi_is_the_one_checked_in(tmp_path: Path, library: Path) -> None:
    """A difference means: either undo it, or raise CATS_ABI_VERSION and write the new dump (the failure shows it)."""
    probe = tmp_path / "probe"
    compile_c([CC, "-std=c11", *STRICT, f"-I{ROOT / 'include'}", ROOT / "abi" / "probe.c", "-o", probe])
    layout = subprocess.run([probe], capture_output=True, text=True, check=True).stdout
    header = re.sub(r"/\*.*?\*/", "", (ROOT / "include" / "cats.h").read_text(), flags=re.DOTALL)
    prototypes = sorted(
        "function " + re.sub(r"\s+", " ", text) for text in re.findall(r"^CATS_API ([^;]+);", header, re.MULTILINE)
    )
    current = layout + "\n".join(prototypes) + "\n"
    assert current == (ROOT / "abi" / "libcats.abi").read_text()


def test_positions_agree_with_a_real_header(tmp_path: Path) -> None:
    folders = [os.environ.get("CATS_ORT_INCLUDE", ""), "/usr/include/onnxruntime", "/usr/local/include/onnxruntime"]
    found = next((folder for folder in folders if folder and Path(folder, "onnxruntime_c_api.h").exists()), None)
    if found is None:
        pytest.skip("no onnxruntime_c_api.h (CATS_ORT_INCLUDE names its folder)")
    check = ROOT / "abi" / "check_ort_header.c"
    compile_c([CC, "-std=c11", "-fsyntax-only", f"-I{found}", *libcats.INCLUDE, check])


def test_versions_agree() -> None:
    header = (ROOT / "include" / "cats.h").read_text()
    assert f'CATS_VERSION_STRING "{cats.__version__}"' in header
    assert f"Version: {cats.__version__}\n" in (ROOT / "cmake" / "cats.pc").read_text()
    assert f'PACKAGE_VERSION "{cats.__version__}"' in (ROOT / "cmake" / "cats-config-version.cmake").read_text()


def c_sdk(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cats.cli", "c-sdk", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory, model_file: Path) -> Path:
    """The SDK folder of the command, its examples built with CMake."""
    cmake = shutil.which("cmake")
    if cmake is None or shutil.which("g++") is None:
        pytest.skip("no cmake, or no g++")
    folder = tmp_path_factory.mktemp("sdk") / "cats"
    done = c_sdk(folder, "--model", model_file)
    assert done.returncode == 0, done.stderr
    build = folder / "build"
    warnings = " ".join(STRICT)
    for command in (
        [cmake, "-S", folder, "-B", build, "-DCATS_BUILD_EXAMPLES=ON", f"-DCMAKE_C_FLAGS={warnings}",
         f"-DCMAKE_CXX_FLAGS={warnings}", "-DCMAKE_BUILD_TYPE=Release"],
        [cmake, "--build", build],
    ):  # fmt: skip
        compile_c(command)
    return build / "examples"


def test_example_in_c(examples: Path, scene: Path, model_file: Path) -> None:
    rows = np.loadtxt(program(examples / "cats-match", model_file, scene / "a.ppm", scene / "b.ppm").splitlines())
    match = Matcher(model_file, threads=2).match(scene / "a.ppm", scene / "b.ppm")
    assert rows.shape == (64, 5)
    assert np.abs(rows[:, 2:4] - match.transfer(rows[:, :2])).max() < 1e-2
    assert np.abs(rows[:, 4] - match.confidence_at(rows[:, :2])).max() < 1e-3
    assert "error: " in program(examples / "cats-match", scene / "a.ppm", scene / "a.ppm", scene / "b.ppm", status=1)


def test_example_reads_jpeg(examples: Path, scene: Path, model_file: Path) -> None:
    if not Path("/usr/include/jpeglib.h").exists():
        pytest.skip("no libjpeg")
    rows = np.loadtxt(program(examples / "cats-match", model_file, scene / "a.ppm", scene / "c.jpg").splitlines())
    match = Matcher(model_file, threads=2).match(scene / "a.ppm", scene / "c.jpg")
    # Decoders differ by a grey level here and there.
    assert np.median(np.abs(rows[:, 2:4] - match.transfer(rows[:, :2]))) < 0.5


def test_example_in_cpp(examples: Path, scene: Path, model_file: Path) -> None:
    out = program(examples / "cats-raii", model_file, scene / "a.ppm", scene / "b.ppm", "100", "50")
    match = Matcher(model_file, threads=2).match(scene / "a.ppm", scene / "b.ppm")
    assert np.abs(np.array(out.split()[:2], float) - match.transfer([[100, 50]])[0]).max() < 1e-2
    assert "usage" in program(examples / "cats-raii", status=2)


def test_example_of_a_video_loop(examples: Path, scene: Path, model_file: Path) -> None:
    frames = [scene / "b.ppm", scene / "a.ppm", scene / "b.ppm"]
    out = program(examples / "cats-video", scene / "tiny.encoder.onnx", scene / "a.ppm", *frames).splitlines()
    matcher = Matcher(model_file, threads=2)
    assert len(out) == len(frames)
    for line, frame in zip(out, frames, strict=True):
        match = matcher.match(scene / "a.ppm", frame)
        centre = (np.array(match.size_a) - 1) / 2
        assert np.abs(np.array(line.split()[1:3], float) - match.transfer([centre])[0]).max() < 1e-2


def test_example_in_ctypes(library: Path, scene: Path, model_file: Path) -> None:
    script = ROOT / "examples" / "ctypes_match.py"
    out = program(sys.executable, script, library, model_file, scene / "a.ppm", scene / "b.ppm", "100", "50")
    match = Matcher(model_file, threads=2).match(scene / "a.ppm", scene / "b.ppm")
    assert np.abs(np.array(out.split(), float) - match.transfer([[100, 50]])[0]).max() < 1e-2


def test_sdk_holds_licence_model_and_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written = write_sdk(".")
    assert {"LICENSE", "NOTICE", "README.md", "CMakeLists.txt", "src", "include"} <= {
        p.name for p in tmp_path.iterdir()
    }
    if written:
        assert [model.name for model in written] == ["cats-tiny.onnx"]
        assert {path.name for path in (tmp_path / "model").iterdir()} == {"cats-tiny.onnx", "cats-tiny.md"}


def test_sdk_refuses_a_full_folder_and_strange_models(tmp_path: Path, scene: Path) -> None:
    full = c_sdk(scene)
    assert (full.returncode, "not an empty folder" in full.stderr) == (2, True)
    strange = c_sdk(tmp_path / "sdk", "--model", scene / "a.ppm")
    assert (strange.returncode, (tmp_path / "sdk").exists()) == (2, False)
    same = [save_split(tmp_path / name)[0] for name in ("x", "y") if not (tmp_path / name).mkdir()]
    with pytest.raises(InputError, match=r"two models are called tiny\.encoder\.onnx"):
        write_sdk(tmp_path / "sdk", tuple(same))


APP = "#include <cats.h>\n#include <stdio.h>\nint main(void) { puts(cats_version()); return 0; }\n"


def test_find_package_pkg_config_and_relocation(examples: Path, tmp_path: Path) -> None:
    cmake = str(shutil.which("cmake"))
    first, moved = tmp_path / "first", tmp_path / "moved"
    compile_c([cmake, "--install", examples.parent, "--prefix", first])
    first.rename(moved)
    (tmp_path / "app.c").write_text(APP)
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.16)\nproject(app C)\nfind_package(cats 0.1 REQUIRED)\n"
        "add_executable(app app.c)\ntarget_link_libraries(app cats::cats)\n"
    )
    compile_c([cmake, "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={moved}"])
    compile_c([cmake, "--build", tmp_path / "build"])
    assert program(tmp_path / "build" / "app") == f"{cats.__version__}\n"
    if shutil.which("pkg-config") is None:
        pytest.skip("no pkg-config")
    pc = next(moved.rglob("cats.pc")).parent
    flags = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "cats"],
        env={**os.environ, "PKG_CONFIG_PATH": str(pc)}, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    library = next(moved.rglob("libcats.so")).parent
    compile_c([CC, tmp_path / "app.c", *flags, f"-Wl,-rpath,{library}", "-o", tmp_path / "app"])
    assert program(tmp_path / "app") == f"{cats.__version__}\n"


def copy_repository(folder: Path) -> Path:
    """The files that a build needs, without anything that lies about."""
    for name in sorted(package.parent.name for package in REPOSITORY.glob("*/__init__.py")):
        ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.onnx", "*.pt")
        shutil.copytree(REPOSITORY / name, folder / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE"):
        shutil.copyfile(REPOSITORY / name, folder / name)
    return folder


def build_wheel(folder: Path, **settings: str) -> tuple[Path, str]:
    script = "import setuptools.build_meta as b; print('wheel', b.build_wheel('out'))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env={**os.environ, **settings}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "out" / re.findall(r"^wheel (\S+)$", done.stdout, re.MULTILINE)[0], done.stderr + done.stdout


needs_setuptools = pytest.mark.skipif(
    int(versions.get("setuptools", "0").split(".")[0]) < 77, reason="no setuptools, or one before 77"
)


@needs_setuptools
def test_wheel_holds_the_library_and_works_from_where_it_is(tmp_path: Path, model_file: Path, scene: Path) -> None:
    wheel, _ = build_wheel(copy_repository(tmp_path / "r"))
    assert re.fullmatch(r"cats_toolkit-.+-py3-none-linux_\w+\.whl", wheel.name)
    site = tmp_path / "site-packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    installed = site / "cats" / "runtime" / "c"
    assert (installed / "include" / "cats.h").is_file()
    assert not list(site.glob("*.data"))
    # Beside the Python package, ONNX Runtime is found without being named.
    (site / "onnxruntime").symlink_to(Path(c.find_onnxruntime()).parent)
    words = ["--cflags", "--libs"]
    settings = {**os.environ, "PYTHONPATH": str(site)}
    settings.pop("CATS_ORT_LIBRARY", None)
    flags = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(site)!r})\n"
         "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f)]\n"
         f"sys.argv[1:] = {words}\nimport cats.runtime.c.__main__ as m; m.main()"],
        capture_output=True, text=True, env=settings,
    )  # fmt: skip
    assert flags.returncode == 0, flags.stderr
    assert str(installed) in flags.stdout
    files = [ROOT / "examples" / name for name in ("match.c", "read_image.c")]
    compile_c([CC, "-std=c11", *files, *flags.stdout.split(), "-o", tmp_path / "match"])
    command = [tmp_path / "match", model_file, scene / "a.ppm", scene / "b.ppm"]
    done = subprocess.run(list(map(str, command)), env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 64


@pytest.mark.slow
@needs_setuptools
@pytest.mark.parametrize("settings", [{"CATS_NO_NATIVE": "1"}, {"CC": "false"}])
def test_pure_wheel_says_why(tmp_path: Path, settings: dict[str, str]) -> None:
    wheel, words = build_wheel(copy_repository(tmp_path / "r"), **settings)
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "libcats.so, the library for C and C++ programs, is not built: " in words
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]


@pytest.mark.slow
@needs_setuptools
def test_editable_installation_builds_the_library_in_place(tmp_path: Path) -> None:
    folder = copy_repository(tmp_path / "r")
    script = "import setuptools.build_meta as b; b.build_editable('out')"
    subprocess.run([sys.executable, "-c", script], cwd=folder, check=True, capture_output=True)
    assert (folder / "runtime" / "c" / "libcats.so").is_file()


@pytest.mark.slow
def test_one_binary_runs_with_onnxruntime_1_20(library: Path, tmp_path: Path, scene: Path, model_file: Path) -> None:
    """The oldest supported release and the installed one, with the same program."""
    target = tmp_path / "old"
    fetch = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", target, "onnxruntime==1.20.*"]
    done = subprocess.run(list(map(str, fetch)), capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"onnxruntime 1.20 cannot be fetched: {done.stderr[-300:]}")
    files = [ROOT / "examples" / name for name in ("match.c", "read_image.c")]
    flags = [f"-I{ROOT / 'include'}", f"-L{library.parent}", f"-Wl,-rpath,{library.parent}", "-lcats"]
    compile_c([CC, "-std=c11", *files, *flags, "-o", tmp_path / "match"])
    results = []
    for folder in (target / "onnxruntime" / "capi", Path(c.find_onnxruntime())):
        words = [str(tmp_path / "match"), str(model_file), str(scene / "a.ppm"), str(scene / "b.ppm")]
        settings = {**os.environ, "CATS_ORT_LIBRARY": str(folder)}
        out = subprocess.run(words, env=settings, capture_output=True, text=True)
        assert out.returncode == 0, out.stderr
        assert out.stderr == ""
        results.append(np.loadtxt(out.stdout.splitlines()))
    assert np.abs(results[0] - results[1]).max() < 1e-2


def test_folders_and_flags_of_the_python_package() -> None:
    assert Path(c.get_include(), "cats.h").is_file()
    assert Path(c.get_cmake_dir(), "cats-config.cmake").is_file()
    assert Path(c.get_pkgconfig_dir(), "cats.pc").is_file()
    assert any(Path(c.find_onnxruntime()).glob("libonnxruntime.so*"))
    assert c.compile_flags().endswith("include")
