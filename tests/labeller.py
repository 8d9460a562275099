"""A stand-in for the labeller, which goes by file names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cats.core.errors import CatsError
from cats.core.images import image_size, read_image
from cats.labelling.annotations import Annotations
from cats.labelling.journal import Journal
from cats.labelling.label import LabelledPhoto

NAMES = ["car_1.png", "duck_1.png", "duck_2.png", "other_1.png"]


class StandIn:
    """Labels by file name: ``duck_1`` is a duck, ``other`` is nothing; stops with an error before the nth photo."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.stop_before: int | None = None
        self.settings: dict[str, Any] = {}

    def __call__(
        self,
        references: Annotations,
        photos: Any,
        matcher: Any,
        *,
        on_photo: Callable[[], None],
        memory: Journal,
        **settings: Any,
    ) -> Iterator[LabelledPhoto]:
        self.settings = settings
        for path, category in photos:
            if (known := memory.get(path, category)) is not None:
                yield known
                continue
            if self.stop_before is not None and len(self.seen) >= self.stop_before:
                raise KeyboardInterrupt
            self.seen.append(path.name)
            on_photo()
            try:
                yield self.label(references, path, category, settings["min_probability"])
            except CatsError as error:
                yield LabelledPhoto(path, (0, 0), category, error=str(error))

    @staticmethod
    def label(references: Annotations, path: Path, category: str | None, least: float) -> LabelledPhoto:
        read_image(path)
        category = category or path.stem.partition("_")[0]
        photo, first = next(references.objects(category if category in ("duck", "car") else None))
        sure = np.linspace(0.3, 0.95, len(first.points)) + 1 / 3000
        points = np.random.default_rng(len(path.name)).uniform(1, 50, (len(first.points), 2))
        return LabelledPhoto(
            path,
            image_size(path),
            first.category,
            points,
            sure,
            np.where(sure >= least, 2, 0),
            0.1 if category == "other" else 0.9,
            (1.0, 2.0, 30.0, 20.0 + 1 / 3),
            reference=photo.path,
        )
