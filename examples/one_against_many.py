"""Match one photo against all photos of a folder, each encoded once: python examples/one_against_many.py FOLDER"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from cats.assets import asset
from cats.checkpoints import load_checkpoint
from cats.export import export_onnx
from cats.runtime import Matcher

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else asset("astronaut.jpg").parent

with TemporaryDirectory() as place:
    # An encoder (image to features) and a matcher (features of a and b to flow); done once, for example by cats-export.
    export_onnx(load_checkpoint(asset("cats-tiny.pt")).model, Path(place, "cats.onnx"), form="split", verified=False)
    matcher = Matcher(Path(place, "cats.encoder.onnx"))
    photos = sorted(folder.glob("*.jpg"))
    gallery = [matcher.encode(photo) for photo in photos]  # can be saved as .npz
    for photo, match in zip(photos, matcher.match_gallery(photos[0], gallery), strict=True):
        print(f"{photos[0].name} -> {photo.name}: mean confidence {match.confidence.mean():.2f}")
    matcher.close()
