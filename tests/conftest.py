"""Imports the package before the folder ``tests/cats`` can be taken for it.

``tests`` is on the module path for the helpers in it, and comes before the finder of an editable installation.
"""

import sys
from pathlib import Path

_HERE = str(Path(__file__).parent)
_PATH = list(sys.path)
sys.path[:] = [entry for entry in sys.path if entry != _HERE]
import cats  # noqa: E402, F401

sys.path[:] = _PATH
