"""The two files of a split model: finding them, loading them, and running one after the other."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cats.assets import find_model
from cats.core.errors import CatsError, InputError, ModelFileError
from cats.core.files import settle
from cats.core.hub import parse_hub_name
from cats.runtime.backends import BACKENDS, open_backend
from cats.runtime.backends.base import Array, Backend
from cats.runtime.batches import run_batches
from cats.runtime.interface import check_outputs

KINDS = ("encoder", "matcher")


def find_split(model: str | Path) -> tuple[Path, Path] | None:
    """Files ``X.encoder.onnx`` and ``X.matcher.onnx`` (or ``.plan``), given one of them, ``X`` or ``X.onnx``,
    or a name on the hub.

    Returns:
        (encoder, matcher), or None where ``model`` is a file of its own or nothing fits.

    Raises:
        ModelFileError: one of the two is missing.
    """
    path = find_model(model) if parse_hub_name(model) else Path(model)
    for kind in KINDS:
        if path.stem.endswith(f".{kind}"):
            base, suffixes = path.with_name(path.stem[: -len(kind) - 1]), [path.suffix]
            break
    else:
        if path.exists():
            return None
        known = list(dict.fromkeys(suffix for entry in BACKENDS.values() for suffix in entry.suffixes))
        given = path.suffix.lower() in known
        base, suffixes = (path.with_suffix(""), [path.suffix]) if given else (path, known)
    for suffix in suffixes:
        pair = [base.with_name(f"{base.name}.{kind}{suffix}") for kind in KINDS]
        settle(pair[0])
        settle(pair[1])
        there = [file.is_file() for file in pair]
        if all(there):
            return pair[0], pair[1]
        if any(there):
            missing, found = (pair[0], pair[1]) if there[1] else (pair[1], pair[0])
            raise ModelFileError(f"{found} is half of a split model and {missing} is missing: cats-export --split")
    return None


def name_files(path: str | Path, kinds: Collection[str]) -> dict[str, Path]:
    """Kind -> file to write, given one name for them all: of a split model ``X.onnx`` stands for ``X.encoder.onnx`` and
    ``X.matcher.onnx``, as either of them does.

    Raises:
        InputError: of a split model, it is a folder.
    """
    given = Path(path)
    if set(kinds) != set(KINDS):
        return dict.fromkeys(kinds, given)
    if given.is_dir():
        raise InputError(f"cannot write {given}: it is a folder")
    stem = given.name.removesuffix(".onnx")
    for kind in KINDS:
        stem = stem.removesuffix(f".{kind}")
    return {kind: given.with_name(f"{stem}.{kind}.onnx") for kind in KINDS}


def open_split(files: tuple[Path, Path], backend: str | None, **options: Any) -> tuple[Backend, Backend]:
    """Load encoder and matcher.

    Raises:
        ModelFileError: the two are not of one export, or not an encoder and a matcher.
        BackendError, InputError: as :func:`cats.runtime.backends.open_backend`.
    """
    encoder = open_backend(files[0], backend, **options)
    try:
        matcher = open_backend(files[1], backend, **options)
    except CatsError:
        encoder.close()
        raise
    try:
        _check(encoder, matcher, files)
    except CatsError:
        encoder.close()
        matcher.close()
        raise
    return encoder, matcher


def encode_tensors(encoder: Backend, tensors: Sequence[Array]) -> list[dict[str, Array]]:
    """Features of prepared images, by name without batch axis; raises as :func:`cats.runtime.batches.run_batches`."""
    results = run_batches(encoder, [{"image": tensor} for tensor in tensors])
    return [{name: value.copy() for name, value in result.items()} for result in results]


def matcher_feeds(a: dict[str, Array], b: dict[str, Array]) -> dict[str, Array]:
    """Inputs of the matcher for features of a and b."""
    return {f"{name}_{side}": value for side, features in (("a", a), ("b", b)) for name, value in features.items()}


def _check(encoder: Backend, matcher: Backend, files: tuple[Path, Path]) -> None:
    for backend, file, kind in zip((encoder, matcher), files, KINDS, strict=True):
        if backend.metadata.kind != kind:
            raise ModelFileError(f"{file} is a model of kind {backend.metadata.kind}, not {kind}: export it again")
    if encoder.metadata.weights_sha256 != matcher.metadata.weights_sha256:
        raise ModelFileError(f"{files[0]} and {files[1]} differ in weights: export both with cats-export --split")
    width, height = encoder.metadata.preprocessing.size
    images = [spec for spec in encoder.inputs if spec.name == "image" and spec.shape[1:] == (3, height, width)]
    if len(encoder.inputs) != 1 or not images or images[0].dtype != np.float32:
        raise ModelFileError(f"{files[0]} does not take float32 image (batch, 3, {height}, {width}): export it again")
    wanted = {f"{spec.name}_{side}": spec.shape[1:] for spec in encoder.outputs for side in "ab"}
    if {spec.name: spec.shape[1:] for spec in matcher.inputs} != wanted:
        raise ModelFileError(f"{files[1]} takes other features than {files[0]} gives: export both together")
    check_outputs(matcher)
