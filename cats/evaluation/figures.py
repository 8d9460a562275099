"""The paper's pictures of what a model does inside: attention (Fig. 4) and correlation maps (Fig. 5)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cats.core.errors import InputError, require
from cats.core.files import atomic_path
from cats.core.geometry import cells_to_pixels, pixels_to_cells

RIGHT, WRONG, TRUTH = "#1a9641", "#d7191c", "#2b6cb0"
_DPI = 160
_TYPE = 7  # points, of panels that are at most two inches wide


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
    """Draw where a point's token attends, per level (rows) and head (columns), over the image (Fig. 4); the last column
    is the mean of the heads, the last row that of the levels.

    Args:
        point: x, y in pixels of the image of ``side``.

    Raises:
        InputError: as :func:`attention_maps`; the point lies outside the image; the file cannot be written.
    """
    image = image_a if side == "a" else image_b
    grid = model.config.feature_size
    index = _cell_index(point, image, grid)
    maps = attention_maps(model, image_a, image_b, side)[:, :, index]
    rows = [f"hyperpixel {number}" for number in model.config.hyperpixels]
    if len(rows) > 1:
        maps, rows = np.concatenate([maps, maps.mean(axis=0, keepdims=True)]), [*rows, "mean of levels"]
    columns = [f"head {number}" for number in range(1, maps.shape[1] + 1)]
    if len(columns) > 1:
        maps, columns = np.concatenate([maps, maps.mean(axis=1, keepdims=True)], axis=1), [*columns, "mean of heads"]
    titled = [1] + [0] * (len(rows) - 1)
    figure, axes = new_figure([image] * len(rows), len(columns), width=1.25, titles=titled)
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            axis = axes[y][x]
            show_image(axis, image, column if y == 0 else "")
            _overlay(axis, maps[y, x].reshape(grid, grid), image)
            axis.plot(*point, marker="+", color="white", markersize=7, markeredgewidth=1.2)
        axes[y][0].text(-0.04, 0.5, row, rotation=90, ha="right", va="center", **_label(axes[y][0]))
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
    figure, axes = new_figure([image_a if image_a.height > image_b.height else image_b] * rows, columns, width=1.6)
    flat = [axis for row in axes for axis in row]
    show_image(flat[0], image_a, "query")
    flat[0].plot(*point, marker="o", color=TRUTH, markeredgecolor="white")
    for axis, values, title in zip(flat[1:], [*levels[:, index], refined[index]], titles, strict=False):
        show_image(axis, image_b, title)
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


def new_figure(
    rows: Sequence[Image.Image], columns: int, *, width: float, titles: Sequence[int] | None = None
) -> tuple[Any, Any]:
    """A figure without pyplot, so that no display and no global state is involved, and its axes by row and column.

    Args:
        rows: the tallest image of each row, which gives the row's height.
        width: of one panel, in inches.
        titles: lines of type above each row; default: one.

    Raises:
        BackendError: matplotlib is not installed.
    """
    require("matplotlib", extra="train", purpose="draw figures")
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    lines = titles or [1] * len(rows)
    type_height = 1.3 * _TYPE / 72  # inches
    heights = [
        width * image.height / image.width + type_height * count + 0.05
        for image, count in zip(rows, lines, strict=True)
    ]
    layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.0, hspace=0.0)
    figure = Figure(figsize=(width * columns, sum(heights)), layout=layout, dpi=_DPI)
    return figure, figure.subplots(len(rows), columns, squeeze=False, gridspec_kw={"height_ratios": heights})


def show_image(axis: Any, image: Image.Image, title: str) -> None:
    """One panel: an image with a small title and no ticks."""
    axis.imshow(np.asarray(image))
    axis.set_title(title, fontsize=_TYPE, pad=2)
    axis.axis("off")


def _label(axis: Any) -> dict[str, Any]:
    return {"fontsize": _TYPE, "transform": axis.transAxes}


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
            figure.savefig(temporary, bbox_inches="tight", pad_inches=0.03)
        except OSError as error:
            raise InputError(f"cannot write figure {path}: {error.strerror or error}") from error
        except ValueError as error:
            raise InputError(f"cannot write figure {path}: {error}; use .png, .pdf or .svg") from error
