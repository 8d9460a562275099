"""Matching with exported models, without torch: ``Matcher("model.onnx").match("a.jpg", "b.jpg")``.

::

    from cats.runtime import Matcher

    match = Matcher("cats.onnx").match("a.jpg", "b.jpg")
    match.transfer([[120, 80]])      # pixels of a -> pixels of b
    match.confidence_at([[120, 80]])
    match.warp().save("b-as-a.png")
"""

from cats.core.geometry import grid_points
from cats.core.images import preprocess, read_image
from cats.runtime.features import Features
from cats.runtime.matcher import Matcher
from cats.runtime.result import Match

__all__ = ["Features", "Match", "Matcher", "grid_points", "preprocess", "read_image"]
