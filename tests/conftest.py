"""What all rooms' tests share: one browser, and processes that import the same clone, whatever is installed."""

import os

from browser import chromium

from cats.core.process import child_environment

__all__ = ["chromium"]

os.environ["PYTHONPATH"] = child_environment()["PYTHONPATH"]
os.environ.pop("COLUMNS", None)  # pytest-xdist sets it; results in a pipe have a width of their own

if "PYTEST_XDIST_WORKER" in os.environ:  # torch's threads: there is a worker for every core
    os.environ.setdefault("OMP_NUM_THREADS", "1")
