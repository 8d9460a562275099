"""The project's own tests marked gpu: one line for each that did not simply pass or skip."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from cats.benchmarks.gpu.kit import record
from cats.benchmarks.record import REPOSITORY


def main() -> None:
    files = sorted(str(f) for f in (REPOSITORY / "tests").rglob("test_*.py") if "mark.gpu" in f.read_text())
    report = Path(tempfile.mkdtemp(), "tests.xml")
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--continue-on-collection-errors", "--tb=short",
               "-p", "no:cacheprovider", f"--junitxml={report}", "--timeout=100", *files]  # fmt: skip
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    record("pytest", exit=done.returncode, end=done.stdout.strip().splitlines()[-3:], errors=done.stderr[-500:])
    if not report.is_file():
        return
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        problem = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        if problem is None:
            record(name, passed=True, s=case.get("time"))
        elif problem.tag == "skipped":
            record(name, skipped=(problem.get("message") or "")[:200])
        else:
            record(name, failed=(problem.text or problem.get("message") or "")[-1500:])


if __name__ == "__main__":
    main()
