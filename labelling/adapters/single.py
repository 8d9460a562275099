"""The labeller as annotation tools ask it: one photo or image at a time, with references that are looked at once."""

from __future__ import annotations

import tempfile
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from cats.assets import asset
from cats.core.errors import InputError
from cats.labelling.annotations import NOT_LABELLED, Annotations
from cats.labelling.formats import read_annotations
from cats.labelling.gather import check_references
from cats.labelling.label import MODEL, LabelledPhoto, open_for_labelling, open_labeller


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
        matcher = open_for_labelling(model or asset(MODEL), streams=1)
        self._labeller = open_labeller(self.references, matcher, looks=looks)
        self._min_probability = min_probability
        self._lock = threading.Lock()  # tools ask from several threads, and one photo has all cores

    def label(self, photo: str | Path) -> LabelledPhoto:
        """Label a photo; one that cannot be read gives a result with ``error``."""
        path = Path(photo)
        try:
            with self._lock:
                found = self._labeller.finish(self._labeller.find(path, None))
        except InputError as error:
            return LabelledPhoto(path, (0, 0), error=str(error))
        sure = found.probability >= self._min_probability
        return replace(found, visibility=np.where(sure, found.visibility, NOT_LABELLED))

    def label_image(self, image: Image.Image) -> LabelledPhoto:
        """Label an image in memory."""
        with tempfile.NamedTemporaryFile(suffix=".png") as file:
            image.convert("RGB").save(file.name, compress_level=1)
            return self.label(file.name)
