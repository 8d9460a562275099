"""Exported files of a model for benchmarks, kept between runs where a folder is given."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import asdict, fields
from pathlib import Path

import cats
from cats.checkpoints import save_checkpoint, weights_sha256
from cats.export.export import describe, write_model
from cats.export.forms import build_form
from cats.export.graph.deployment import DeploymentOptions
from cats.export.onnx_writer import DEFAULT_OPSET
from cats.model import CATs

REWRITES = tuple(item.name for item in fields(DeploymentOptions) if item.default)
"""Names of the rewrites that are always on, in the order in which the graph computes."""

NAIVE = DeploymentOptions(**(dict.fromkeys(REWRITES, False) | {"fold_batch_norm": True}))
"""All rewrites off, but for batch norm: the exporter leaves none in a file, and ONNX Runtime would fold it as well."""

OURS = DeploymentOptions()
FOR_CPU = DeploymentOptions(winograd=True)
CALIBRATION_PAIRS = 32


class Exports:
    """Files of one model, written when first asked for.

    Args:
        model: is not changed.
        folder: where files are; a file that an earlier run with the same weights and version of the toolkit left there
            is used again. Empty it after a change of the exporter itself.
    """

    def __init__(self, model: CATs, folder: Path) -> None:
        self.model, self.folder = model, folder
        self._stamp = hashlib.sha256(f"{weights_sha256(model)} {cats.__version__}".encode()).hexdigest()[:12]

    def checkpoint(self) -> Path:
        """The model as a checkpoint."""
        path = self._path("checkpoint", "pt")
        if not path.exists():
            save_checkpoint(path, self.model)
        return path

    def pair(self, options: DeploymentOptions = OURS) -> Path:
        """Form ``pair`` with the given rewrites, unverified: a benchmark measures the drift itself."""
        path = self._path(f"pair-{_key(options)}", "onnx")
        if not path.exists():
            self._write(build_form(self.model, "pair", options=options)["pair"], "pair", path, options)
        return path

    def keep(self, file: Path, options: DeploymentOptions = OURS) -> None:
        """Take a file that was exported before as what :meth:`pair` gives."""
        self.folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, self._path(f"pair-{_key(options)}", "onnx"))

    def split(self) -> tuple[Path, Path]:
        """Encoder and matcher with all rewrites."""
        encoder, matcher = self._path("encoder", "onnx"), self._path("matcher", "onnx")
        if not (encoder.exists() and matcher.exists()):
            models = build_form(self.model, "split")
            self._write(models["encoder"], "encoder", encoder, OURS)
            self._write(models["matcher"], "matcher", matcher, OURS)
        return encoder, matcher

    def int8(self, photos: Path, threads: int | None = None) -> Path:
        """The pair quantized for CPUs by ``cats-calibrate``'s recipe, on a folder's photos.

        Raises:
            InputError: the folder has no two photos, or one cannot be read.
        """
        from cats.calibration.calibrate import calibrate, load_float_model, measure_ranges
        from cats.data.photo_pairs import photos_from_folder

        path = self._path("int8", "onnx")
        if not path.exists():
            source = load_float_model(self.pair(OURS))
            ranges = measure_ranges(source, photos_from_folder(photos).spread(CALIBRATION_PAIRS), threads=threads)
            calibrate(source, ranges, path, target="cpu", threads=threads)
        return path

    def _path(self, label: str, suffix: str) -> Path:
        return self.folder / f"{self._stamp}-{label}.{suffix}"

    def _write(self, exported: object, kind: str, path: Path, options: DeploymentOptions) -> None:
        target = "cpu" if options.winograd else None
        metadata = describe(self.model, kind, precision="fp32", opset=DEFAULT_OPSET, target=target)
        write_model(exported, metadata, path)


def _key(options: DeploymentOptions) -> str:
    """One letter a rewrite: short, and in the order of the fields."""
    return "".join("y" if value else "n" for value in asdict(options).values())
