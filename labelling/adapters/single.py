"""The labeller as annotation tools ask it: photos or images, one or a few at a time, with a model that stays loaded."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from cats.assets import asset
from cats.labelling.annotations import Annotations
from cats.labelling.formats import read_annotations
from cats.labelling.gather import check_references
from cats.labelling.label import MODEL, LabelledPhoto, label_photos, open_for_labelling


class PhotoLabeller:
    """The labeller of an annotation tool.

    Args:
        references: label file of a few photos, in any format of :mod:`cats.labelling.formats`.
        root: folder of its photos; None takes the one in which it lies.
        model: file of a model as :class:`cats.runtime.Matcher` takes it; None takes ``cats-tiny``.
        min_probability: points below are not labelled.
        looks: see :func:`cats.labelling.label.label_photos`.

    Attributes:
        references: what was read.

    Raises:
        InputError, ModelFileError, BackendError: as :func:`~cats.labelling.label.label_photos`.
    """

    def __init__(
        self,
        references: str | Path,
        *,
        root: str | Path | None = None,
        model: str | Path | None = None,
        min_probability: float = 0.5,
        looks: int = 2,
    ) -> None:
        file = Path(references)
        self.references: Annotations = check_references(read_annotations(file, root=root), file)
        self._settings: dict[str, Any] = {"looks": looks, "min_probability": min_probability}
        self._matcher = open_for_labelling(model or asset(MODEL))
        self._lock = threading.Lock()  # tools ask from several threads, and one request has all cores

    def label(self, photos: Sequence[str | Path]) -> list[LabelledPhoto]:
        """Label photos; one that cannot be read gives a result with ``error``."""
        with self._lock:
            return list(label_photos(self.references, photos, self._matcher, **self._settings))

    def label_image(self, image: Image.Image) -> LabelledPhoto:
        """Label an image in memory."""
        with tempfile.NamedTemporaryFile(suffix=".png") as file:
            image.convert("RGB").save(file.name, compress_level=1)
            return self.label([file.name])[0]
