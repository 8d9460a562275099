"""CATs toolkit: train, export, calibrate and run Cost Aggregation Transformers for semantic correspondence.

Importing this package loads nothing heavy; torch comes in with :mod:`cats.model`.
"""

__version__ = "0.1.0"
