"""Matching in the shape of transformers' "keypoint-matching" pipeline: python examples/hf_pipeline.py [a.jpg b.jpg]"""

import sys
from typing import Any

from cats.assets import asset
from cats.core.geometry import grid_points
from cats.runtime import Matcher


class KeypointMatching:
    """Pairs of photos to lists of matches; a model of a hub by its name: KeypointMatching("hf://user/repo")."""

    def __init__(self, model: str = "cats-tiny", *, grid: int = 16, **options: Any) -> None:
        self.matcher, self.grid = Matcher(model, **options), grid

    def __call__(self, inputs: Any, *, threshold: float = 0.0) -> Any:
        """[a, b] to its matches, surest first, or many pairs to many such lists; a photo is a path or a PIL image.

        The score is the probability of being right; matches of less than ``threshold`` are left out.
        """
        one = not isinstance(inputs[0], (list, tuple))
        found = [self._matches(match, threshold) for match in self.matcher.match_many([inputs] if one else inputs)]
        return found[0] if one else found

    def _matches(self, match: Any, threshold: float) -> list[dict[str, Any]]:
        start = grid_points(match.size_a, self.grid)
        rows = zip(start.tolist(), match.transfer(start).tolist(), match.shown_at(start).tolist(), strict=True)
        matches = [
            {"keypoint_image_0": {"x": x, "y": y}, "keypoint_image_1": {"x": u, "y": v}, "score": score}
            for (x, y), (u, v), score in rows
            if score >= threshold
        ]
        return sorted(matches, key=lambda item: -item["score"])


if __name__ == "__main__":
    pair = sys.argv[1:] or [asset("astronaut.jpg"), asset("grace_hopper.jpg")]
    print(KeypointMatching()(pair, threshold=0.5)[0])
