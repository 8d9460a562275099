"""What ``cats-run`` does: match a pair, or a table of pairs, and write pictures, warps, flows and JSON."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from cats.core.ahead import map_ahead
from cats.core.errors import CatsError, InputError
from cats.core.files import atomic_path, write_bytes, write_text
from cats.core.geometry import GRID_POINTS, Floats, grid_points
from cats.core.images import read_image
from cats.core.outputs import OutputPlan, make_folder
from cats.core.tables import PairRow, read_pairs
from cats.runtime.document import matches_document, model_document
from cats.runtime.draw import draw_matches, scale_name
from cats.runtime.matcher import Matcher
from cats.runtime.overlay import overlay
from cats.runtime.result import Match
from cats.runtime.sheet import draw_sheet
from cats.runtime.spread import spread_points
from cats.runtime.viewer import match_page

PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Outputs:
    """Files to write for one pair; ``None`` is not written.

    Attributes:
        picture: both photos with lines between matching points.
        warp: image b bent into the frame of a.
        overlay: that, laid over a.
        flow: ``.npy`` (2, G, G) float32 in cells, a -> b.
        html: the match to click through, see :func:`cats.runtime.viewer.match_page`.
        sheet: the warp from all sides, see :func:`cats.runtime.sheet.draw_sheet`.
    """

    picture: Path | None = None
    warp: Path | None = None
    overlay: Path | None = None
    flow: Path | None = None
    html: Path | None = None
    sheet: Path | None = None

    def check(self, *reads: Path | None, force: bool = False) -> None:
        """Refuse what cannot be written before any work is done; see :class:`cats.core.outputs.OutputPlan`."""
        plan = OutputPlan(force=force).reads(*reads)
        plan.writes(self.picture, self.warp, self.overlay, self.sheet, suffixes=PICTURES)
        plan.writes(self.flow, suffixes=(".npy",)).writes(self.html, suffixes=(".html", ".htm")).check()

    def written(self) -> list[Path]:
        """The files that there are."""
        paths = (self.picture, self.warp, self.overlay, self.flow, self.html, self.sheet)
        return [path for path in paths if path is not None]


@dataclass(frozen=True)
class Selection:
    """Which matches of a pair are kept.

    Attributes:
        grid: points a side of the even grid that is matched where no points are given; None is 10, of which a picture
            shows none: it has ``count`` points of its own.
        count: points of a picture, see :func:`cats.runtime.spread.spread_points`.
        min_confidence: in [0, 1], of the model's confidence.
        min_probability: in [0, 1], of the probability of being right; above 0 only with a model that gives one.
        max_forward_backward: largest distance in pixels of a after a -> b -> a; ``None`` does not ask for it.
    """

    grid: int | None = None
    min_confidence: float = 0.0
    max_forward_backward: float | None = None
    count: int = 10
    min_probability: float = 0.0

    def choose(self, match: Match, points: Floats | None) -> Floats:
        """The points of a that stay; all given ones must lie in a."""
        start = grid_points(match.size_a, self.grid or GRID_POINTS) if points is None else points
        return self._keep(match, start)

    def choose_shown(self, match: Match, points: Floats | None, image: Image.Image) -> Floats:
        """Points that a picture shows: those where points or a grid are asked for, else sure ones on the object."""
        if points is not None or self.grid is not None:
            return self.choose(match, points)
        least = {"min_confidence": self.min_confidence, "min_probability": self.min_probability}
        return self._keep(match, spread_points(match, image, self.count, **least))

    def both_ways(self, points: bool, picture: bool) -> bool:
        """Whether b -> a is to be matched too: for the limit, and for a picture that chooses its points."""
        return self.max_forward_backward is not None or (picture and not points and self.grid is None)

    def describe(self) -> str:
        """The limits, as options."""
        limits = []
        if self.min_confidence or not self.min_probability:
            limits.append(f"--min-confidence {self.min_confidence:g}")
        if self.min_probability:
            limits.append(f"--min-probability {self.min_probability:g}")
        if self.max_forward_backward is not None:
            limits.append(f"--max-forward-backward {self.max_forward_backward:g}")
        return ", ".join(limits)

    def _keep(self, match: Match, start: Floats) -> Floats:
        keep = match.confidence_at(start) >= self.min_confidence
        if self.min_probability > 0:
            keep &= match.probability_at(start) >= self.min_probability
        if self.max_forward_backward is not None:
            keep &= match.forward_backward_error(start) <= self.max_forward_backward
        return start[keep]


@dataclass
class Report:
    """What a table of pairs came to: pairs, failures (line and message), and times of each stage in milliseconds."""

    pairs: int = 0
    failures: list[tuple[int, str]] = field(default_factory=list)
    times: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0


def run(
    matcher: Matcher,
    a: Path,
    b: Path,
    outputs: Outputs,
    *,
    points: Floats | None = None,
    selection: Selection | None = None,
    looks: int = 1,
    region: ArrayLike | None = None,
) -> dict[str, Any]:
    """Match image a to image b and write what is asked for.

    Args:
        points: (N, 2) in pixels of a; ``None`` takes an even grid.
        looks: 2 matches again, with both photos cut to the object, see :meth:`cats.runtime.matcher.Matcher.match`.
        region: of the object in a; None takes what the points span, or the confident cells where there are none.

    A picture without a single point is not written.

    Returns:
        The matches document of design.md, see :func:`cats.runtime.document.matches_document`.

    Raises:
        InputError: an image, a point or a destination is at fault; no file is left half-written.
    """
    outputs.check(a, b, force=True)
    selection = selection or Selection()
    both_ways = selection.both_ways(points is not None, outputs.picture is not None)
    match = _match(matcher, a, b, points, both_ways, looks, region)
    return _finish(matcher, match, a, b, outputs, points, selection)


def run_pairs(
    matcher: Matcher,
    pairs: Path,
    *,
    folders: Outputs,
    selection: Selection | None = None,
    batch_size: int = 1,
    workers: int = 2,
    streams: int = 1,
    looks: int = 1,
    force: bool = False,
    report: Report | None = None,
    on_rows: Callable[[int], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Match every pair of a CSV, in order; one that fails is reported and the rest go on.

    Args:
        pairs: columns ``a,b`` and optionally ``points``, see :func:`cats.core.tables.read_pairs`.
        folders: here the folders that receive the files of each pair; made if missing.
        batch_size, workers, streams: see :meth:`cats.runtime.matcher.Matcher.match_many`.
        looks: see :func:`run`; with 2 the batch size and the workers have no meaning.
        force: replace files of an earlier run.
        report: filled while the pairs go by.
        on_rows: called with the number of pairs before the first one.

    Yields:
        One matches document per pair, or ``{"a", "b", "line", "error"}`` for one that failed.
    """
    report = Report() if report is None else report
    selection = selection or Selection()
    rows = read_pairs(pairs, keep_bad=True)
    for folder in folders.written():
        make_folder(folder)
    named = [_pair_outputs(folders, row, number, len(rows)) for number, row in enumerate(rows, start=1)]
    plan = OutputPlan(force=force).reads(pairs, *(path for row in rows for path in (row.a, row.b)))
    plan.writes(*(path for outputs in named for path in outputs.written())).check()
    if on_rows is not None:
        on_rows(len(rows))
    start = time.perf_counter()
    good = [row for row in rows if row.problem is None]
    both_ways = selection.both_ways("points" in rows[0].cells, folders.picture is not None)
    results: Iterator[Match | CatsError]
    if looks == 1:
        results = matcher.match_many(
            ((row.a, row.b) for row in good),
            batch_size=batch_size,
            workers=workers,
            streams=streams,
            forward_backward=both_ways,
            return_errors=True,
        )
    else:
        results = map_ahead(lambda row: _look_twice(matcher, row, both_ways), good, streams)
    for row, outputs in zip(rows, named, strict=True):
        report.pairs += 1
        try:
            if row.problem is not None:
                raise InputError(row.problem)
            result = next(results)
            if isinstance(result, CatsError):
                raise result
            document = _finish(matcher, result, row.a, row.b, outputs, row.points_of_a(), selection)
            report.times.append(document["time_ms"])
        except InputError as error:
            report.failures.append((row.line, str(error)))
            document = {"a": str(row.a), "b": str(row.b), "line": row.line, "error": str(error)}
        report.seconds = time.perf_counter() - start
        yield document


def save_picture(image: Image.Image, path: Path) -> None:
    """Write a picture atomically, in the format of its suffix; raises :class:`InputError` where that is impossible."""
    options: dict[str, Any] = {} if path.suffix.lower() == ".png" else {"quality": 92}
    with atomic_path(path) as temporary:
        try:
            image.save(temporary, **options)
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def _match(
    matcher: Matcher,
    a: Path,
    b: Path,
    points: Floats | None,
    both_ways: bool,
    looks: int,
    region: ArrayLike | None = None,
) -> Match:
    if looks > 1 and region is None and points is not None and len(points) > 2 and np.ptp(points, axis=0).min() > 0:
        region = np.concatenate([points.min(axis=0), points.max(axis=0)])
    return matcher.match(a, b, looks=looks, region_a=region, forward_backward=both_ways)


def _look_twice(matcher: Matcher, row: PairRow, both_ways: bool) -> Match | InputError:
    try:
        return _match(matcher, row.a, row.b, row.points_of_a(), both_ways, 2)
    except InputError as error:
        return error


def _finish(
    matcher: Matcher, match: Match, a: Path, b: Path, outputs: Outputs, points: Floats | None, selection: Selection
) -> dict[str, Any]:
    """Choose points, draw everything, and only then write."""
    start = time.perf_counter()
    kept = selection.choose(match, points)
    model = model_document(matcher)
    asked = match if selection.max_forward_backward is not None else replace(match, backward_flow=None)
    document = matches_document(asked, kept, a=a, b=b, model=model)
    pictures = _draw(matcher, match, points, kept, selection, outputs, (a.name, b.name))
    page = match_page(match, points=points, model=model, max_pixels=matcher.max_pixels) if outputs.html else ""
    drawn = time.perf_counter()
    for path, image in pictures.items():
        save_picture(image, path)
    if outputs.flow is not None:
        _save_flow(match, outputs.flow)
    if outputs.html is not None:
        write_text(outputs.html, page)
    if outputs.written():
        document["time_ms"]["draw"] = round((drawn - start) * 1000, 3)
        document["time_ms"]["write"] = round((time.perf_counter() - drawn) * 1000, 3)
    return document


def _draw(
    matcher: Matcher,
    match: Match,
    points: Floats | None,
    kept: Floats,
    selection: Selection,
    outputs: Outputs,
    names: tuple[str, str],
) -> dict[Path, Image.Image]:
    pictures: dict[Path, Image.Image] = {}
    if outputs.picture is not None or outputs.overlay is not None:
        image_a = read_image(_given(match.image_a), max_pixels=matcher.max_pixels)
    if outputs.picture is not None:
        image_b = read_image(_given(match.image_b), max_pixels=matcher.max_pixels)
        shown = selection.choose_shown(match, points, image_a) if len(kept) else kept
        if not len(shown):  # none of the sure ones on the object passes the limits: the surest of the grid
            order = np.argsort(-match.confidence_at(kept), kind="stable")[: selection.count]
            shown = kept[np.sort(order)]
        if len(shown):
            places, confidence = match.transfer(shown), match.shown_at(shown)
            model = f"{matcher.path.name}, {matcher.metadata.precision}"
            pictures[outputs.picture] = draw_matches(
                image_a, image_b, shown, places, confidence, names=names, subtitle=model, scale=scale_name(match)
            )
    if outputs.sheet is not None:
        pictures[outputs.sheet] = draw_sheet(match, names=names, max_pixels=matcher.max_pixels)
    if outputs.warp is not None or outputs.overlay is not None:
        warped = match.warp(max_pixels=matcher.max_pixels)
        if outputs.warp is not None:
            pictures[outputs.warp] = warped
        if outputs.overlay is not None:
            pictures[outputs.overlay] = overlay(match, image_a, warped)
    return pictures


def _given(image: Any) -> Any:
    assert image is not None  # the matcher keeps what it was given
    return image


def _save_flow(match: Match, path: Path) -> None:
    import io

    buffer = io.BytesIO()
    np.save(buffer, match.flow, allow_pickle=False)
    write_bytes(path, buffer.getvalue())


def _pair_outputs(folders: Outputs, row: PairRow, number: int, count: int) -> Outputs:
    """Files of one pair, ``0007-cat-dog.png`` for the seventh of thousands, in the folders."""
    stem = f"{number:0{len(str(count))}d}-{_plain(row.a.stem)}-{_plain(row.b.stem)}"

    def place(folder: Path | None, suffix: str) -> Path | None:
        return folder / f"{stem}{suffix}" if folder is not None else None

    return Outputs(
        picture=place(folders.picture, ".png"),
        warp=place(folders.warp, ".warp.png"),
        overlay=place(folders.overlay, ".overlay.png"),
        flow=place(folders.flow, ".npy"),
        html=place(folders.html, ".html"),
        sheet=place(folders.sheet, ".sheet.png"),
    )


def _plain(stem: str) -> str:
    return re.sub(r"[^\w.-]+", "_", stem)[:60]
