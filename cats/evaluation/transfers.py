"""Keypoint transfers of one or several models beside each other, as the paper's Figures 1 to 3 show them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cats.core.errors import InputError
from cats.core.geometry import Floats, transfer_points
from cats.core.pck import Protocol, score_flow
from cats.core.protocols import PairMatcher
from cats.data.samples import Sample
from cats.evaluation.evaluate import flow_of
from cats.evaluation.figures import RIGHT, TRUTH, WRONG, new_figure, save_figure, show_image

_LETTERS = 30  # of the type above a panel that fit in a line


@dataclass(frozen=True)
class Transfer:
    """One pair with the keypoints that one model transferred, all in pixels of the images as shown.

    Attributes:
        query, reference: the images; keypoints go from the first to the second.
        points, estimates, truth: (N, 2); the first in the query, the others in the reference.
        right: (N,) bool.
        title: of the pair.
        pck: in percent.
    """

    query: Image.Image
    reference: Image.Image
    points: Floats
    estimates: Floats
    truth: Floats
    right: NDArray[np.bool_]
    title: str
    pck: float


def transfer(matcher: PairMatcher, sample: Sample, protocol: Protocol, alpha: float = 0.1) -> Transfer:
    """Match a pair and judge its keypoints.

    Args:
        matcher: see :func:`cats.evaluation.evaluate.evaluate`.
        sample: a pair with keypoints.
        protocol: says direction and right or wrong. The estimates are drawn unrounded in original pixels, whatever its
            frame and rounding are; the verdict is the protocol's.
        alpha: of the PCK.

    Raises:
        InputError: the sample has no keypoints, or an image cannot be read.
    """
    if not sample.annotated:
        raise InputError(f"{sample.name} has no keypoints to draw")
    images = [sample.read(side) for side in "ab"]
    query, reference = images if protocol.direction == "a->b" else images[::-1]
    directed = sample.keypoints.directed(protocol.direction)
    flow = flow_of(matcher.match(query, reference), sample.name)
    score = score_flow(sample.keypoints, flow, protocol)
    backwards = "" if protocol.direction == "a->b" else ", backwards"  # the name says a -> b
    return Transfer(
        query,
        reference,
        directed.points_a,
        transfer_points(directed.points_a, flow, directed.size_a, directed.size_b),
        directed.points_b,
        score.correct(alpha),
        f"{sample.name}{backwards}",
        score.pck(alpha),
    )


def draw_transfers(
    rows: Sequence[Sequence[Transfer]], models: Sequence[str], path: str | Path, caption: str = ""
) -> None:
    """Draw pairs, one a row: the query's keypoints, where each model puts them (right ones green, wrong ones red with
    a dotted line to where they belong), and the ground truth. Points of one keypoint have the same number.

    Args:
        rows: of each pair, the transfer of each model.
        models: their names, as titles of the columns.
        caption: below the figure; says what counts as right.

    Raises:
        InputError: nothing to draw, or the file cannot be written.
        BackendError: matplotlib is not installed.
    """
    if not rows or not models:
        raise InputError("no pairs to draw")
    tallest = [max((row[0].query, row[0].reference), key=lambda image: image.height / image.width) for row in rows]
    names = ["\n".join(textwrap.wrap(row[0].title, _LETTERS)) for row in rows]
    titles = [max(name.count("\n") + 1, 2 if number == 0 else 1) for number, name in enumerate(names)]
    figure, axes = new_figure(tallest, len(models) + 2, width=1.6, titles=titles)
    for number, (panels, row) in enumerate(zip(axes, rows, strict=True)):
        first = row[0]
        show_image(panels[0], first.query, names[number])
        _draw_points(panels[0], first.points, [TRUTH] * len(first.points), first.query)
        for axis, name, item in zip(panels[1:], models, row, strict=False):
            title = f"{item.right.sum()} of {len(item.right)} right"
            show_image(axis, item.reference, f"{name}\n{title}" if number == 0 else title)
            for (x, y), (u, v), right in zip(item.estimates, item.truth, item.right, strict=True):
                if not right:
                    axis.plot([x, u], [y, v], color=WRONG, linewidth=0.7, linestyle=":", scalex=False, scaley=False)
            _draw_points(axis, item.estimates, [RIGHT if right else WRONG for right in item.right], item.reference)
        show_image(panels[-1], first.reference, "ground truth")
        _draw_points(panels[-1], first.truth, [TRUTH] * len(first.truth), first.reference)
    if caption:
        figure.supxlabel("\n".join(textwrap.wrap(caption, _LETTERS * (len(models) + 2))), fontsize=7)
    save_figure(figure, path)


def _draw_points(axis: Any, points: Floats, colours: list[str], image: Image.Image) -> None:
    """Numbered points; those outside the image are drawn at its border."""
    from matplotlib.patheffects import withStroke

    outline = [withStroke(linewidth=1.2, foreground="black")]
    at = np.clip(points, 0, np.asarray(image.size) - 1)
    axis.scatter(at[:, 0], at[:, 1], c=colours, s=20, edgecolors="white", linewidths=0.6, zorder=3, clip_on=False)
    for number, (x, y) in enumerate(at, start=1):
        text = axis.annotate(str(number), (x, y), (2.5, 2), textcoords="offset points", fontsize=5.5, color="white")
        text.set(path_effects=outline, zorder=4)
