"""Export a checkpoint and read what the comparison with PyTorch found: python examples/export_and_check.py [best.pt]"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from cats.assets import asset
from cats.checkpoints import load_checkpoint
from cats.core.metadata import read_onnx_metadata
from cats.export import export_onnx

checkpoint = load_checkpoint(sys.argv[1] if len(sys.argv) > 1 else asset("cats-tiny.pt"))

with TemporaryDirectory() as folder:
    export_onnx(checkpoint.model, Path(folder, "cats.onnx"), batch=1)  # a free batch takes thrice as long to export
    metadata = read_onnx_metadata(Path(folder, "cats.onnx"))

print("verified:", metadata.verified)
print(f"flow differs from PyTorch by {metadata.parity['p99_px']:.4f} px at the 99th percentile")
