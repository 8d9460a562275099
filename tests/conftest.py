"""Processes that tests start import the same clone, whatever is installed."""

import os

from cats.core.process import child_environment

os.environ["PYTHONPATH"] = child_environment()["PYTHONPATH"]
