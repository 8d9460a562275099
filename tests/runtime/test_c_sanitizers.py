"""libcats under AddressSanitizer, UndefinedBehaviorSanitizer, LeakSanitizer and ThreadSanitizer, and their own proof:
a planted leak, overflow and race are each found."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from split_onnx import save_split

from cats.benchmarks import libcats
from cats.benchmarks.libcats import BASE, CC, INCLUDE, LIBS, SOURCES

pytestmark = pytest.mark.skipif(not libcats.HAVE_COMPILER, reason="no C compiler")

HERE = Path(__file__).parent / "c"
ADDRESS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
THREAD = ["-fsanitize=thread"]
WRAP = ["-Wl,--wrap=malloc", "-Wl,--wrap=aligned_alloc"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, model_file: Path) -> list[str]:
    return [str(model_file), str(save_split(tmp_path_factory.mktemp("models"))[0])]


def build(folder: Path, source: str, *flags: str) -> str:
    program = folder / source.removesuffix(".c")
    libcats.compile_c([CC, *BASE, *flags, *INCLUDE, HERE / source, *SOURCES, *LIBS, "-o", program])
    return str(program)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build(tmp_path_factory.mktemp("asan"), "exercise.c", *ADDRESS)


@pytest.fixture(scope="module")
def thread(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tsan")
    # ONNX Runtime is not built with the sanitizer, which therefore cannot see how it orders its own accesses.
    (folder / "suppressions").write_text("called_from_lib:libonnxruntime.so\n")
    return build(folder, "exercise.c", *THREAD)


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    suppressions = Path(program).parent / "suppressions"
    options = f"suppressions={suppressions}" if suppressions.exists() else ""
    settings = libcats.environment(
        ASAN_OPTIONS="detect_leaks=1",
        UBSAN_OPTIONS="print_stacktrace=1",
        # With its locks ignored, an unlock that ONNX Runtime makes in a tail call would look like misuse by libcats.
        TSAN_OPTIONS=f"halt_on_error=0 report_mutex_bugs=0 {options}",
    )
    return subprocess.run([program, *arguments], env=settings, capture_output=True, text=True, timeout=1500)


def test_plain(tmp_path: Path, models: list[str]) -> None:
    done = run(build(tmp_path, "exercise.c"), *models, "8", "3")
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_address_undefined_and_leaks(address: str, models: list[str]) -> None:
    done = run(address, *models, "2", "3")
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


@pytest.mark.parametrize(
    ("planted", "report"),
    [("leak", "LeakSanitizer: detected memory leaks"), ("overflow", "AddressSanitizer: heap-buffer-overflow")],
)
def test_planted_memory_defects_are_found(address: str, models: list[str], planted: str, report: str) -> None:
    done = run(address, *models, "1", "1", planted)
    assert done.returncode != 0
    assert report in done.stderr


def test_eight_threads(thread: str, models: list[str]) -> None:
    done = run(thread, *models, "8", "3")
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_planted_race_is_found(thread: str, models: list[str]) -> None:
    done = run(thread, *models, "8", "3", "race")
    assert done.returncode != 0
    assert "ThreadSanitizer: data race" in done.stderr
    assert "shared_counter" in done.stderr


def test_no_allocation_on_the_hot_path(tmp_path: Path, models: list[str]) -> None:
    done = run(build(tmp_path, "allocations.c", *WRAP), *models, "hot")
    assert (done.returncode, done.stdout) == (0, "0 0\n")


def test_every_allocation_may_fail(tmp_path: Path, models: list[str]) -> None:
    done = run(build(tmp_path, "allocations.c", *WRAP, *ADDRESS), *models, "fail")
    assert (done.returncode, done.stderr) == (0, "")
