"""What all rooms' tests share: one browser, and processes that import the same clone, whatever is installed."""

import os

from browser import chromium

from cats.core.process import child_environment

__all__ = ["chromium"]

os.environ["PYTHONPATH"] = child_environment()["PYTHONPATH"]
