"""Match two photos: python examples/match_two_photos.py [a.jpg b.jpg]"""

import sys

from cats.assets import asset
from cats.runtime import Matcher

a, b = sys.argv[1:] or (asset("astronaut.jpg"), asset("grace_hopper.jpg"))

matcher = Matcher(asset("cats-tiny.onnx"))
match = matcher.match(a, b)

points = [[203, 101], [224, 146]]  # pixels of a: an eye and the mouth of the astronaut
for (x, y), (u, v), confidence in zip(points, match.transfer(points), match.confidence_at(points), strict=True):
    print(f"a ({x}, {y}) -> b ({u:.1f}, {v:.1f}), confidence {confidence:.2f}")
