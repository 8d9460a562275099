"""The paper's figures: keypoint transfers (Fig. 1-3), attention (Fig. 4), correlation maps (Fig. 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cats.core.errors import InputError, require
from cats.core.files import atomic_path
from cats.core.geometry import Floats, cells_to_pixels, pixels_to_cells, transfer_points
from cats.core.pck import Protocol, score_flow
from cats.core.protocols import PairMatcher
from cats.data.samples import Sample
from cats.evaluation.evaluate import flow_of

RIGHT, WRONG, TRUTH = "#1a9641", "#d7191c", "#2b6cb0"
_DPI = 110


@dataclass(frozen=True)
class Transfer:
    """One pair with its transferred keypoints, all in pixels of the images as shown.

    Attributes:
        query, reference: the images; keypoints go from the first to the second.
        points, estimates, truth: (N, 2); the first in the query, the others in the reference.
        right: (N,) bool.
        title: of the row.
    """

    query: Image.Image
    reference: Image.Image
    points: Floats
    estimates: Floats
    truth: Floats
    right: NDArray[np.bool_]
    title: str


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
        f"{sample.name}{backwards}   PCK@{alpha:g} {score.pck(alpha):.0f}",
    )


def draw_transfers(transfers: Sequence[Transfer], path: str | Path) -> None:
    """Draw pairs, one a row (Fig. 1-3): the query's keypoints, where they were put (right ones green, wrong ones red),
    and the ground truth. Points of one keypoint have the same number.

    Raises:
        InputError: nothing to draw, or the file cannot be written.
        BackendError: matplotlib is not installed.
    """
    if not transfers:
        raise InputError("no pairs to draw")
    figure, axes = _figure(len(transfers), 3, width=3.6, height=2.9)
    from matplotlib.patheffects import withStroke

    outline = withStroke(linewidth=1.5, foreground="black")
    for row, item in zip(axes, transfers, strict=True):
        colours = [RIGHT if right else WRONG for right in item.right]
        panels = (
            (item.query, item.points, colours, item.title),
            (
                item.reference,
                item.estimates,
                colours,
                f"estimates: {item.right.sum()} right, {(~item.right).sum()} wrong",
            ),
            (item.reference, item.truth, [TRUTH] * len(item.truth), "ground truth"),
        )
        for axis, (image, points, colour, title) in zip(row, panels, strict=True):
            _show(axis, image, title)
            # Estimates outside the image are drawn at its border.
            at = np.clip(points, 0, np.asarray(image.size) - 1)
            axis.scatter(at[:, 0], at[:, 1], c=colour, s=34, edgecolors="white", linewidths=0.8)
            for number, (x, y) in enumerate(at, start=1):
                text = axis.annotate(str(number), (x, y), (3, 3), textcoords="offset points", fontsize=6, color="white")
                text.set_path_effects([outline])
        for (x, y), (u, v), right in zip(item.estimates, item.truth, item.right, strict=True):
            if not right:
                row[1].plot([x, u], [y, v], color=WRONG, linewidth=0.8, linestyle=":", scalex=False, scaley=False)
    save_figure(figure, path)


def attention_maps(model: Any, image_a: Image.Image, image_b: Image.Image, side: str = "a") -> NDArray[np.float32]:
    """Attention among the positions of a level, of the last block, while matching two images.

    Args:
        model: :class:`cats.model.CATs`.
        image_a, image_b: upright RGB; a is the model's target.
        side: whose positions the tokens are. With swapping self-attention the first pass attends over a (target), the
            second over b (source); a model without swapping has only the second.

    Returns:
        (L, heads, N, N) float32, rows are queries, each sums to 1.

    Raises:
        InputError: the model has no pass over that side.
    """
    import torch

    _require_correlation(model)
    captured: list[Any] = []
    attention = model.decoder.blocks[-1].attn
    hook = attention.register_forward_hook(lambda module, inputs, output: captured.append(module.weights(inputs[0])[0]))
    try:
        with torch.inference_mode():
            model.match(*_inputs(model, image_a, image_b))
    finally:
        hook.remove()
    passes = {"a": 0, "b": 1} if model.config.swapping else {"b": 0}
    if side not in passes:
        raise InputError(f"a model without swapping self-attention attends over image b only, not {side!r}")
    return captured[passes[side]].float().cpu().numpy()  # batch of 1, so the rows of (B * L) are the levels


def draw_attention(
    model: Any,
    image_a: Image.Image,
    image_b: Image.Image,
    point: tuple[float, float],
    path: str | Path,
    side: str = "a",
) -> None:
    """Draw where a point's token attends, per level (rows) and head (columns), over the image (Fig. 4).

    Args:
        point: x, y in pixels of the image of ``side``.

    Raises:
        InputError: as :func:`attention_maps`; the point lies outside the image; the file cannot be written.
    """
    image = image_a if side == "a" else image_b
    grid = model.config.feature_size
    index = _cell_index(point, image, grid)
    maps = attention_maps(model, image_a, image_b, side)[:, :, index]
    levels, heads = maps.shape[:2]
    figure, axes = _figure(levels, heads, width=1.7, height=1.8)
    for level, ids in enumerate(model.config.hyperpixels):
        for head in range(heads):
            axis = axes[level][head]
            _show(axis, image, f"hyperpixel {ids}, head {head + 1}" if head == 0 else f"head {head + 1}")
            _overlay(axis, maps[level, head].reshape(grid, grid), image)
            axis.plot(*point, marker="+", color="white", markersize=9, markeredgewidth=1.5)
    save_figure(figure, path)


def correlation_maps(
    model: Any, image_a: Image.Image, image_b: Image.Image
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Correlation before and after aggregation.

    Returns:
        (L, N, N) the filtered correlation of each level, and (N, N) the refined one; rows are positions of a, columns
        positions of b, float32.
    """
    import torch

    _require_correlation(model)
    with torch.inference_mode():
        a, b = (model.features(image) for image in _inputs(model, image_a, image_b))
        levels, refined = model.cost_volume(a, b)[0], model.match_features(a, b)[0]
    return tuple(x.float().transpose(-1, -2).cpu().numpy() for x in (levels, refined))  # type: ignore[return-value]


def draw_correlation(
    model: Any,
    image_a: Image.Image,
    image_b: Image.Image,
    point: tuple[float, float],
    path: str | Path,
    truth: tuple[float, float] | None = None,
) -> None:
    """Draw the correlation of a point of a with all of b: of each level, and after aggregation (Fig. 5).

    Args:
        point: x, y in pixels of a.
        truth: the corresponding point of b, where it is known.

    Raises:
        InputError: the point lies outside image a; the file cannot be written.
    """
    grid = model.config.feature_size
    index = _cell_index(point, image_a, grid)
    levels, refined = correlation_maps(model, image_a, image_b)
    ids = model.config.hyperpixels
    titles = [*(f"hyperpixel {number}" for number in ids), "after aggregation"]
    columns = min(len(titles) + 1, 5)
    rows = -(-(len(titles) + 1) // columns)
    figure, axes = _figure(rows, columns, width=2.3, height=2.2)
    flat = [axis for row in axes for axis in row]
    _show(flat[0], image_a, "a")
    flat[0].plot(*point, marker="o", color=TRUTH, markeredgecolor="white")
    for axis, values, title in zip(flat[1:], [*levels[:, index], refined[index]], titles, strict=False):
        _show(axis, image_b, title)
        _overlay(axis, values.reshape(grid, grid), image_b)
        row, column = divmod(int(values.argmax()), grid)
        best = cells_to_pixels([[column, row]], image_b.size, grid)[0]
        axis.plot(*best, marker="x", color="white", markersize=7, markeredgewidth=1.5)
        if truth is not None:
            axis.plot(*truth, marker="o", color="none", markeredgecolor=RIGHT, markersize=9, markeredgewidth=1.5)
    for axis in flat[len(titles) + 1 :]:
        axis.axis("off")
    save_figure(figure, path)


def _require_correlation(model: Any) -> None:
    if model.config.architecture != "cats":
        raise InputError(f"a model of architecture {model.config.architecture} computes no correlation to be shown")


def _inputs(model: Any, image_a: Image.Image, image_b: Image.Image) -> list[Any]:
    import torch

    from cats.core.images import preprocess

    device = next(model.parameters()).device
    model.eval()
    return [
        torch.from_numpy(preprocess(image, model.config.preprocessing))[None].to(device) for image in (image_a, image_b)
    ]


def _cell_index(point: tuple[float, float], image: Image.Image, grid: int) -> int:
    """Row-major index of the cell that a pixel lies in."""
    x, y = point
    if not (-0.5 <= x <= image.width - 0.5 and -0.5 <= y <= image.height - 0.5):
        raise InputError(f"point ({x:g}, {y:g}) lies outside the image, which has {image.width}x{image.height} pixels")
    column, row = np.clip(np.rint(pixels_to_cells([[x, y]], image.size, grid)[0]).astype(int), 0, grid - 1)
    return int(row * grid + column)


def _figure(rows: int, columns: int, *, width: float, height: float) -> tuple[Any, Any]:
    """A figure without pyplot, so that no display and no global state is involved; panels are in inches."""
    require("matplotlib", extra="train", purpose="draw figures")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained", dpi=_DPI)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _show(axis: Any, image: Image.Image, title: str) -> None:
    axis.imshow(np.asarray(image))
    axis.set_title(title, fontsize=7)
    axis.axis("off")


def _overlay(axis: Any, values: NDArray[np.float32], image: Image.Image) -> None:
    """Lay a map of the grid over an image; each cell covers its part of it."""
    low, high = float(values.min()), float(values.max())
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    extent = (-0.5, image.width - 0.5, image.height - 0.5, -0.5)
    axis.imshow(scaled, extent=extent, cmap="inferno", alpha=0.65, vmin=0, vmax=1, interpolation="bilinear")


def save_figure(figure: Any, path: str | Path) -> None:
    """Write a figure of matplotlib in one piece; the suffix of ``path`` gives the format.

    Raises:
        InputError: the file cannot be written, or not in that format.
    """
    with atomic_path(path) as temporary:
        try:
            figure.savefig(temporary)
        except OSError as error:
            raise InputError(f"cannot write figure {path}: {error.strerror or error}") from error
        except ValueError as error:
            raise InputError(f"cannot write figure {path}: {error}; use .png, .pdf or .svg") from error
