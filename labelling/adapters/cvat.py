"""An auto-annotation function of CVAT: the SDK's protocol of detection functions, over the labeller.

::

    pip install cvat-cli
    cvat-cli task auto-annotate 42 --function-module cats.labelling.adapters.cvat \\
        -p references=str:refs/refs.json -p min_probability=float:0.8

The labels of the task must have the names of the categories; those with keypoints must be skeletons.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from cats.core.errors import require
from cats.labelling.adapters.single import PhotoLabeller
from cats.labelling.annotations import HIDDEN, Annotation, Category


class LabelFunction:
    """A detection function, see ``cvat_sdk.auto_annotation.DetectionFunction``.

    Attributes:
        spec: labels that it gives: a skeleton for each category with keypoints, else boxes or outlines.
    """

    def __init__(self, labeller: PhotoLabeller) -> None:
        self._cvat = require("cvat_sdk.auto_annotation", extra="cvat", purpose="label inside CVAT")
        self._masks = require("cvat_sdk.masks", extra="cvat", purpose="label inside CVAT")
        self._labeller = labeller
        self._categories = labeller.references.categories
        labels = [self._label_spec(index, category) for index, category in enumerate(self._categories)]
        self.spec = self._cvat.DetectionFunctionSpec(labels=labels)

    def detect(self, context: Any, image: Image.Image) -> Sequence[Any]:
        """Shapes of a frame.

        Args:
            context: its ``conf_threshold`` hides points that are less probable, and drops objects that are less likely
                of the references' kind.
        """
        found = self._labeller.label_image(image)
        threshold = context.conf_threshold or 0.0
        if not found.found or found.same_kind < threshold:
            return []
        annotation = found.annotation()
        index = [category.name for category in self._categories].index(annotation.category)
        category = self._categories[index]
        if category.keypoints:
            return self._skeleton(index, annotation, threshold) if annotation.labelled.any() else []
        return self._outline(index, annotation, context)

    def _label_spec(self, index: int, category: Category) -> Any:
        if not category.keypoints:
            return self._cvat.label_spec(category.name, index)
        sublabels = [self._cvat.keypoint_spec(name, k) for k, name in enumerate(category.keypoints)]
        return self._cvat.skeleton_label_spec(category.name, index, sublabels=sublabels)

    def _skeleton(self, index: int, annotation: Annotation, threshold: float) -> list[Any]:
        sure = annotation.probability if annotation.probability is not None else np.ones(len(annotation.points))
        elements = []
        for k, (place, labelled) in enumerate(zip(annotation.points, annotation.labelled, strict=True)):
            shown = bool(labelled and sure[k] >= threshold)
            at = place.tolist() if np.isfinite(place).all() else [0.0, 0.0]
            occluded = bool(annotation.visibility[k] == HIDDEN)
            elements.append(self._cvat.keypoint(k, at, outside=not shown, occluded=occluded))
        return [self._cvat.skeleton(index, elements)]

    def _outline(self, index: int, annotation: Annotation, context: Any) -> list[Any]:
        if annotation.mask is not None and annotation.mask.area and not context.conv_mask_to_poly:
            return [self._cvat.mask(index, self._masks.encode_mask(annotation.mask.to_array()))]
        if annotation.polygons:
            return [self._cvat.polygon(index, polygon.ravel().tolist()) for polygon in annotation.polygons]
        box = annotation.extent()
        if box is None:
            return []
        x, y, width, height = box
        return [self._cvat.rectangle(index, [x, y, x + width, y + height])]


def create(
    references: str, root: str | None = None, model: str | None = None, min_probability: float = 0.5, looks: int = 2
) -> LabelFunction:
    """What ``cvat-cli`` calls; the arguments are those of :class:`~cats.labelling.adapters.single.PhotoLabeller`."""
    labeller = PhotoLabeller(references, root=root, model=model, min_probability=min_probability, looks=looks)
    return LabelFunction(labeller)
