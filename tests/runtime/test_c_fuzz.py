"""Mutated metadata, model files, images and arguments: libcats refuses them with a text; no crash, leak or hang."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import pytest

from cats.benchmarks import libcats
from cats.benchmarks.libcats import BASE, CC, INCLUDE, LIBS, ROOT, SOURCES

pytestmark = pytest.mark.skipif(not libcats.HAVE_COMPILER, reason="no C compiler")

FUZZ = ROOT / "fuzz"
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]


def fuzz(folder: Path, model: Path, runs: int, seed: int) -> subprocess.CompletedProcess[str]:
    program = folder / "fuzz"
    files = [FUZZ / "fuzz_cats.c", FUZZ / "fuzz_driver.c", *SOURCES]
    libcats.compile_c([CC, *BASE, *SANITIZE, *INCLUDE, *files, *LIBS, "-o", program])
    command = ["nice", "-n", "19", program, FUZZ / "seeds", str(runs), str(seed)]
    settings = libcats.environment(CATS_FUZZ_MODEL=str(model))
    return subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True)


def test_mutations(tmp_path: Path, model_file: Path) -> None:
    done = fuzz(tmp_path, model_file, 1000, seed=1)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("1000 runs")


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_hundred_thousand_mutations(tmp_path: Path, model_file: Path) -> None:
    done = fuzz(tmp_path, model_file, 100_000, seed=7)
    assert (done.returncode, done.stderr) == (0, "")
    print(done.stdout)


def test_a_planted_overflow_is_found(tmp_path: Path, model_file: Path) -> None:
    """The fuzzer sees what it is for: without this limit of the filter, a row is read beyond its end."""
    source = (ROOT / "src" / "image.c").read_text()
    check = "if (end > from) end = from;"
    assert check in source
    broken = tmp_path / "image.c"
    broken.write_text(source.replace(check, ""))
    others = [path for path in SOURCES if not path.endswith("/image.c")]
    program = tmp_path / "fuzz"
    files = [FUZZ / "fuzz_cats.c", FUZZ / "fuzz_driver.c", *others, broken]
    libcats.compile_c([CC, *BASE, *SANITIZE, *INCLUDE, *files, *LIBS, "-o", program])
    settings = libcats.environment(CATS_FUZZ_MODEL=str(model_file))
    command = [program, FUZZ / "seeds", "300", "1"]
    done = subprocess.run(command, cwd=tmp_path, env=settings, capture_output=True, text=True)
    assert done.returncode != 0
    assert "AddressSanitizer" in done.stderr
    assert (tmp_path / "crash-input").exists()


def test_seeds_are_those_of_the_script() -> None:
    spec = importlib.util.spec_from_file_location("make_seeds", FUZZ / "make_seeds.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    written = {path.name: path.read_bytes() for path in (FUZZ / "seeds").iterdir()}
    assert written == script.seeds()
