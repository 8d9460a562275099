"""Quantize an ONNX file to INT8 with photos: python examples/quantize.py [model.onnx folder-of-photos]"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from cats.assets import asset
from cats.calibration.calibrate import calibrate, load_float_model, measure_ranges
from cats.data.photo_pairs import demo_photos, photos_from_folder

model = sys.argv[1] if len(sys.argv) > 1 else asset("cats-tiny.onnx")
photos = photos_from_folder(sys.argv[2]) if len(sys.argv) > 2 else demo_photos()

source = load_float_model(model)
ranges = measure_ranges(source, photos)
with TemporaryDirectory() as folder:
    report = calibrate(source, ranges, Path(folder, "cats.int8.onnx"), target="cpu", pairs=photos)
    print(f"{report.path.stat().st_size / 1e6:.1f} MB instead of {Path(model).stat().st_size / 1e6:.1f}")
print(f"the flow moved by {report.drift.p99_px:.2f} px at the 99th percentile")
