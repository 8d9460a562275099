"""Write docs/pictures/labelling.jpg: three labelled photos, and six that ``label_photos`` labels from them.

The photos are pieces of the two demo portraits, turned and cut, since these may be shipped: the labelled ones show the
astronaut, the others Grace Hopper.

Usage: python -m cats.benchmarks.labelling_picture
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from cats.assets import asset
from cats.benchmarks.record import REPOSITORY
from cats.core.tables import read_points
from cats.labelling.annotations import AnnotatedPhoto, Annotation, Annotations, Category
from cats.labelling.draw import draw_annotation
from cats.labelling.label import label_photos
from cats.runtime.draw import BACKGROUND, draw_caption

LABELLED = (((60, 10, 400, 350), 0), ((70, 0, 430, 360), 8), ((30, 0, 440, 410), -6))
OTHERS = (
    ((6, 70, 506, 570), 0), ((100, 90, 420, 410), 7), ((30, 20, 490, 480), -8),
    ((140, 100, 400, 360), 0), ((80, 110, 440, 470), 5), ((110, 60, 430, 380), -5),
)  # fmt: skip
SIDE, GAP, CAPTION = 300, 12, 26


def piece(image: Image.Image, crop: tuple[int, int, int, int], degrees: float) -> Image.Image:
    """The photo turned about its middle, and cut."""
    return image.rotate(degrees, Image.Resampling.BICUBIC).crop(crop)


def turned(points: np.ndarray, image: Image.Image, crop: tuple[int, int, int, int], degrees: float) -> np.ndarray:
    """Where points of the photo lie in its piece."""
    middle = np.array(image.size) / 2
    angle = np.deg2rad(degrees)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return (points + 0.5 - middle) @ rotation.T + middle - 0.5 - np.array(crop[:2])


def main() -> None:
    """Label and draw."""
    portrait, other = (Image.open(asset(name)).convert("RGB") for name in ("astronaut.jpg", "grace_hopper.jpg"))
    points = read_points(asset("astronaut.json"))[:, :2]
    names = tuple(str(number) for number in range(1, len(points) + 1))
    pictures = []
    with tempfile.TemporaryDirectory() as folder:
        labelled, photos = [], []
        for number, (crop, degrees) in enumerate(LABELLED):
            path = Path(folder, f"labelled-{number}.png")
            image = piece(portrait, crop, degrees)
            image.save(path)
            annotation = Annotation("portrait", turned(points, portrait, crop, degrees))
            labelled.append(AnnotatedPhoto(path, image.size, (annotation,)))
            pictures.append(draw_annotation(image, annotation, side=SIDE))
        for number, (crop, degrees) in enumerate(OTHERS):
            path = Path(folder, f"photo-{number}.png")
            piece(other, crop, degrees).save(path)
            photos.append(path)
        references = Annotations((Category("portrait", names),), tuple(labelled))
        for result in label_photos(references, photos, min_probability=0.5):
            pictures.append(draw_annotation(Image.open(result.path), result.annotation(), side=SIDE))
    size = (3 * SIDE + 4 * GAP, 3 * SIDE + 5 * GAP + 2 * CAPTION)
    canvas = Image.new("RGB", size, BACKGROUND)
    draw_caption(canvas, "labelled by a person", (GAP, GAP + 14), SIDE * 3)
    draw_caption(
        canvas,
        "labelled by cats label: colour is probability, hollow is below 0.5",
        (GAP, 2 * GAP + CAPTION + SIDE + 14),
        SIDE * 3,
    )
    for index, picture in enumerate(pictures):
        row, column = divmod(index, 3)
        top = GAP + CAPTION + row * (SIDE + GAP) + (CAPTION if row else 0)
        canvas.paste(picture, (GAP + column * (SIDE + GAP), top))
    canvas.save(REPOSITORY / "docs" / "pictures" / "labelling.jpg", quality=90)


if __name__ == "__main__":
    main()
