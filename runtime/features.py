"""What the encoder of a split model says about one image, kept apart from it: :class:`Features`."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cats.core.errors import InputError
from cats.core.files import write_bytes
from cats.core.geometry import Size

FORMAT = 1
_HEAD = "cats"
_MAX_BYTES = 8 << 30


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
    result: dict[str, Features] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > _MAX_BYTES:
                raise InputError(f"{path} would take more than {_MAX_BYTES >> 30} GiB: not features of images")
        with np.load(path, allow_pickle=False) as stored:
            head = json.loads(bytes(stored[_HEAD]))
            if head["format"] != FORMAT:
                raise InputError(f"{path}: features of format {head['format']}; this toolkit reads {FORMAT}")
            groups: dict[str, list[str]] = {}
            for entry in stored.files:
                groups.setdefault(entry.partition("/")[0], []).append(entry)
            for index, item in enumerate(head["images"]):
                arrays = {name.partition("/")[2]: stored[name] for name in groups[str(index)]}
                width, height = item["size"]
                size = (int(width), int(height))
                result[item["key"]] = Features(arrays, size, item["weights_sha256"], item["source"])
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot read features {path}: {error.strerror or error}") from error
    except Exception as error:  # broken archives raise almost anything
        raise InputError(f"{path} holds no features of Matcher.encode ({error or type(error).__name__})") from error
    if weights_sha256 is not None:
        for found in result.values():
            check_weights(found, weights_sha256, path)
    return result


def check_weights(features: Features, weights_sha256: str, name: str | Path) -> None:
    """Raise :class:`InputError` where the features come from another model."""
    if features.weights_sha256 != weights_sha256:
        raise InputError(
            f"{name}: features of a model with other weights ({features.weights_sha256[:12]}) than this one "
            f"({weights_sha256[:12]}): encode the image again"
        )
