"""A copy of the files that make the package, as a fresh clone has them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from cats.benchmarks.record import REPOSITORY


def product_files() -> list[str]:
    """Paths, relative to the repository, of all that git knows of or would take, tests, results and documents aside."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    skipped = ("tests/", "docs/", "benchmarks/results/", ".")
    return [name for name in listed if not name.startswith(skipped) and (REPOSITORY / name).is_file()]


def copy_clone(folder: Path, *, without: tuple[str, ...] = ()) -> Path:
    """The product's files below ``folder``; ``without``: suffixes to leave out, such as those of large files."""
    for name in product_files():
        if name.endswith(without) and without:
            continue
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, target)
    return folder
