"""CATs toolkit: train, export, calibrate and run Cost Aggregation Transformers for semantic correspondence.

Importing this package loads nothing heavy; torch comes in with :mod:`cats.model`.
"""

from pathlib import Path

__version__ = "0.1.0"

# In a clone, cats.export, cats.runtime and the other rooms are folders beside this one: found without an install.
_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "export").is_dir():
    __path__.append(str(_root))
