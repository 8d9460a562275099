"""Write a trained checkpoint into assets/ as the shipped ``cats-tiny``: float16 checkpoint, ONNX file, demo picture.

The ONNX file is exported from the float16 checkpoint, so that both hold the same weights to the bit.

Usage: python benchmarks/ship_tiny.py runs/cats-tiny/best.pt
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cats.checkpoints import load_checkpoint, save_checkpoint

ASSETS = Path(__file__).resolve().parents[1] / "assets"


def main(trained: Path) -> None:
    """Ship one checkpoint."""
    checkpoint = load_checkpoint(trained)
    half, onnx = ASSETS / "cats-tiny.pt", ASSETS / "cats-tiny.onnx"
    save_checkpoint(half, checkpoint.model, metrics=checkpoint.metrics, training=checkpoint.training, half=True)
    commands = Path(sys.executable).parent
    subprocess.run([commands / "cats-export", "--ckpt", half, "--weights", "fp16-storage", "-o", onnx], check=True)
    photos = [ASSETS / "astronaut.jpg", ASSETS / "grace_hopper.jpg"]
    subprocess.run([commands / "cats-run", onnx, *photos, "-o", ASSETS / "match.jpg"], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
