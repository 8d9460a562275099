"""Match one photo against all photos of a folder, each encoded once: python examples/one_against_many.py FOLDER"""

import sys
from pathlib import Path

from cats.assets import asset
from cats.runtime import Matcher

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else asset("astronaut.jpg").parent

# An encoder (image to features) and, beside it, a matcher (features to flow), as cats-export --split writes them.
matcher = Matcher(asset("cats-tiny.encoder.onnx"))
photos = sorted(folder.glob("*.jpg"))
gallery = [matcher.encode(photo) for photo in photos]  # can be saved as .npz
for photo, match in zip(photos, matcher.match_gallery(photos[0], gallery), strict=True):
    print(f"{photos[0].name} -> {photo.name}: mean confidence {match.confidence.mean():.2f}")
matcher.close()
