"""What the encoder of a split model says about one image, kept apart from it: :class:`Features`."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cats.core.errors import InputError
from cats.core.files import open_regular, write_bytes
from cats.core.geometry import Size
from cats.core.json_text import parse_json

FORMAT = 1
_HEAD = "cats"
_MAX_HEAD, _MAX_IMAGE = 64 << 20, 128 << 20  # bytes; of the largest backbones an image takes 20 MB
_DTYPES = (np.float16, np.float32)


@dataclass(frozen=True)
class Features:
    """One encoded image, made by :meth:`cats.runtime.Matcher.encode`.

    Attributes:
        arrays: the encoder's outputs by name, without the batch axis: ``features_0`` (C, N), ..., ``appearance``.
        size: (width, height) of the upright image in pixels.
        weights_sha256: of the model that made them; a matcher of other weights refuses them.
        source: the file they were made from, if it was one; needed only for pictures and warps.
    """

    arrays: dict[str, NDArray[np.generic]]
    size: Size
    weights_sha256: str
    source: str | None = None

    def save(self, path: str | Path) -> None:
        """Write ``.npz``, whole or not at all."""
        save_features(path, {"image": self})

    @classmethod
    def load(cls, path: str | Path, weights_sha256: str | None = None) -> Features:
        """Read what :meth:`save` wrote.

        Args:
            weights_sha256: refuse features of other weights, as ``matcher.metadata.weights_sha256``; without it, the
                matcher that is given them does.

        Raises:
            InputError: missing, not such a file, of several images, or of other weights.
        """
        found = load_features(path, weights_sha256)
        if len(found) != 1:
            raise InputError(f"{path} holds the features of {len(found)} images, not of one")
        return next(iter(found.values()))


def save_features(path: str | Path, features: Mapping[str, Features]) -> None:
    """Write the features of several images, by key, into one ``.npz``, whole or not at all."""
    head = [
        {"key": key, "size": list(item.size), "weights_sha256": item.weights_sha256, "source": item.source}
        for key, item in features.items()
    ]
    text = json.dumps({"format": FORMAT, "images": head}).encode()
    arrays: dict[str, Any] = {_HEAD: np.frombuffer(text, np.uint8)}
    for n, item in enumerate(features.values()):
        arrays |= {f"{n}/{name}": value for name, value in item.arrays.items()}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_bytes(Path(path), buffer.getvalue())


def load_features(path: str | Path, weights_sha256: str | None = None) -> dict[str, Features]:
    """Read what :func:`save_features` wrote; raises as :meth:`Features.load`."""
    try:
        with open_regular(path, "features") as handle, zipfile.ZipFile(handle) as archive:
            result = _read(archive, path)
    except InputError:
        raise
    except Exception as error:  # broken archives raise almost anything
        raise InputError(f"{path} holds no features of Matcher.encode ({error or type(error).__name__})") from error
    if weights_sha256 is not None:
        for found in result.values():
            check_weights(found, weights_sha256, path)
    return result


def _read(archive: zipfile.ZipFile, path: str | Path) -> dict[str, Features]:
    """Everything is bounded before it is read: an archive of a few bytes may say that it holds gigabytes."""
    groups: dict[str, dict[str, zipfile.ZipInfo]] = {}
    for entry in archive.infolist():
        group, _, name = entry.filename.removesuffix(".npy").partition("/")
        groups.setdefault(group, {})[name] = entry
    text = _read_array(archive, groups[_HEAD][""], (np.uint8,), _MAX_HEAD).tobytes()
    head = parse_json(text, f"{path}: its list of images", limit=_MAX_HEAD)
    if head["format"] != FORMAT:
        raise InputError(f"{path}: features of format {head['format']!r}; this toolkit reads {FORMAT}")
    result: dict[str, Features] = {}
    for index, item in enumerate(head["images"]):
        entries, size, sha, source = groups[str(index)], item["size"], item["weights_sha256"], item["source"]
        if not (isinstance(sha, str) and isinstance(item["key"], str) and (source is None or isinstance(source, str))):
            raise InputError(f"{path}: image {index} has no text as its key, source or weights_sha256")
        if not (len(size) == 2 and all(type(side) is int and 0 < side < 1 << 20 for side in size)):
            raise InputError(f"{path}: image {index} has the size {size!r:.80}")
        if sum(entry.file_size for entry in entries.values()) > _MAX_IMAGE:
            raise InputError(
                f"{path}: image {index} would take more than {_MAX_IMAGE >> 20} MiB: no features of a CATs"
            )
        arrays = {name: _read_array(archive, entry, _DTYPES, _MAX_IMAGE) for name, entry in entries.items()}
        result[item["key"]] = Features(arrays, (size[0], size[1]), sha, source)
    return result


def _read_array(
    archive: zipfile.ZipFile, entry: zipfile.ZipInfo, dtypes: tuple[type[np.generic], ...], limit: int
) -> NDArray[np.generic]:
    """One ``.npy`` of an archive, of these types and at most ``limit`` bytes."""
    with archive.open(entry) as handle:
        if np.lib.format.read_magic(handle) != (1, 0):
            raise ValueError(f"{entry.filename} is of a newer .npy format")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(handle)
        if dtype.type not in dtypes or not dtype.isnative:
            raise ValueError(f"{entry.filename} holds {dtype}")
        size = math.prod(shape) * dtype.itemsize
        if not 0 <= size <= min(limit, entry.file_size):
            raise ValueError(f"{entry.filename} has the shape {shape}")
        return np.frombuffer(handle.read(size), dtype).reshape(shape, order="F" if fortran else "C")


def check_weights(features: Features, weights_sha256: str, name: str | Path) -> None:
    """Raise :class:`InputError` where the features come from another model."""
    if features.weights_sha256 != weights_sha256:
        raise InputError(
            f"{name}: features of a model with other weights ({features.weights_sha256[:12]}) than this one "
            f"({weights_sha256[:12]}): encode the image again"
        )
