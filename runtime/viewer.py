"""A match as one HTML page that holds everything: photos, flow and confidence; no model, no network.

:func:`match_page` is what ``cats view``, ``cats-run --html`` and notebooks show. ``page/`` beside this file holds the
page itself: its template, its style and its JavaScript modules, which the pages of :mod:`cats.serving` share.
"""

from __future__ import annotations

import base64
import functools
import html
import io
import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from cats.core.errors import InputError
from cats.core.geometry import as_points
from cats.core.images import MAX_PIXELS, read_image
from cats.runtime.result import Match, confidence_mapping

MODULES = ("geometry.js", "colours.js", "match.js", "panel.js", "blend.js", "picture.js", "app.js")
"""The modules of the page that every form of it needs, each after those that it imports."""

# The browser itself keeps such a page from asking any server for anything.
_STORED_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"
_STORED_PRIVACY = (
    "This page holds the photos and the match: it works from disk, loads nothing and sends nothing. "
    "Whoever gets the file gets the photos."
)
_PHOTO_BYTES = 480_000  # of a page: both photos, as base64, stay below 1.3 MB
_PHOTO_SIDE = 1600
_NOTEBOOK_BYTES, _NOTEBOOK_SIDE = 120_000, 720
_QUALITIES = (88, 80, 70, 60)
_IMPORT = re.compile(r"^import .*?;\n", re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|class|const)\b)", re.MULTILINE)


def page_file(name: str) -> str:
    """Text of a file of the page, for example ``page.css``."""
    return resources.files("cats.runtime").joinpath("page", name).read_text("utf-8")


def render_page(*, policy: str, title: str, engine: str, privacy: str, **values: Any) -> str:
    """The page's HTML out of its template.

    Args:
        policy: Content-Security-Policy of the page.
        title: of the window.
        engine: first words of the line that says what matches.
        privacy: the last line, which says where photos go.
        values: further values of ``page.html``: ``stored`` with ``style``, ``script``, ``photos`` and ``match``, or
            ``scripts``.
    """
    return _template().render(policy=policy, title=title, engine=engine, privacy=privacy, **values)


def match_page(
    match: Match,
    *,
    names: tuple[str, str] | None = None,
    points: ArrayLike | None = None,
    model: dict[str, Any] | None = None,
    max_pixels: int = MAX_PIXELS,
    photo_bytes: int = _PHOTO_BYTES,
    photo_side: int = _PHOTO_SIDE,
) -> str:
    """One self-contained HTML page of a match.

    Args:
        match: made with images, which are read again and stored as JPEG without their EXIF data.
        names: captions of the photos; default: their file names.
        points: (N, 2) in pixels of a, shown at the start.
        model: what the page's JSON export says of the model, see :func:`cats.runtime.document.model_document`.
        max_pixels: limit for reading the images.
        photo_bytes: limit of each stored photo; larger ones lose quality, then size. Coordinates stay those of the
            original.
        photo_side: largest width and height of a stored photo.

    Returns:
        HTML of at most about 2.7 times ``photo_bytes`` and 0.2 MB.

    Raises:
        InputError: the match was made without images, or they can no longer be read.
    """
    if match.image_a is None or match.image_b is None:
        raise InputError("this match was made without images: there is nothing to show")
    photos = [
        _data_url(_jpeg(read_image(image, max_pixels=max_pixels), photo_bytes, photo_side))
        for image in (match.image_a, match.image_b)
    ]
    a, b = names or (_name(match.image_a, "a"), _name(match.image_b, "b"))
    document = {
        "a": a,
        "b": b,
        "size_a": list(match.size_a),
        "size_b": list(match.size_b),
        "flow": _floats(match.flow),
        "confidence": _floats(match.confidence if match.raw_confidence is None else match.raw_confidence),
        "calibration": probability_knots(match.calibration),
        "backward_flow": _floats(match.backward_flow),
        "probabilities": _bytes(match.probabilities),
        "points": [] if points is None else as_points(points).tolist(),
        "time_ms": match.times,
        "model": model or {},
    }
    return render_page(
        policy=_STORED_POLICY,
        title=f"{a} - {b}",
        engine=f"stored match, {Path((model or {}).get('file', '')).name or 'CATs'}",
        privacy=_STORED_PRIVACY,
        stored=True,
        style=page_file("page.css"),
        script=bundle([*MODULES, "stored.js"]),
        photos=dict(zip("ab", photos, strict=True)),
        # What ends a script, or starts a comment in it, begins with "<".
        match=json.dumps(document, allow_nan=False).replace("<", "\\u003c"),
    )


def probability_knots(calibration: dict[str, Any] | None) -> dict[str, list[float]] | None:
    """What the page turns a confidence into a probability of being right with; None where the model does not say it."""
    if not (calibration or {}).get("confidence"):
        return None
    mapping = confidence_mapping(calibration)
    return {name: mapping[name] for name in ("confidence", "probability")}


def notebook_html(match: Match) -> str:
    """The page in a frame of its own, with photos small enough that a notebook stays small."""
    page = match_page(match, photo_bytes=_NOTEBOOK_BYTES, photo_side=_NOTEBOOK_SIDE)
    frame = 'style="width: 100%; height: 720px; border: 0" sandbox="allow-scripts allow-downloads" title="match"'
    return f'<iframe {frame} srcdoc="{html.escape(page, quote=True)}"></iframe>'


def bundle(names: Sequence[str]) -> str:
    """Modules of the page as one script: a module that a page from disk may not load from files beside it.

    Their imports are left out, so each must come after what it imports, and no two may define the same name.
    """
    parts = [_EXPORT.sub("", _IMPORT.sub("", page_file(name))) for name in names]
    return "(() => {\n'use strict';\n" + "\n".join(parts).replace("</script", "<\\/script") + "\n})();"


@functools.cache
def _template() -> Any:
    import jinja2  # here, because most users of the runtime never make a page

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.ChainableUndefined, trim_blocks=True)
    return environment.from_string(page_file("page.html"))


def _jpeg(image: Image.Image, limit: int, side: int) -> bytes:
    """JPEG of at most ``limit`` bytes where that is possible at 256 pixels."""
    picture = image.copy()
    picture.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3)
    while True:
        for quality in _QUALITIES:
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=quality, optimize=True, exif=b"")
            if buffer.tell() <= limit:
                return buffer.getvalue()
        if max(picture.size) <= 256:
            return buffer.getvalue()
        width, height = (max(round(length * 0.8), 1) for length in picture.size)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)


def _data_url(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def _floats(values: NDArray[Any] | None) -> dict[str, Any] | None:
    if values is None:
        return None
    return {"data": base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()}


def _bytes(values: NDArray[Any] | None) -> dict[str, Any] | None:
    """Probabilities to a 255th of the largest one of all, which a heat map does not show."""
    if values is None:
        return None
    scale = float(values.max()) / 255 or 1.0
    return {"data": base64.b64encode(np.rint(values / scale).astype(np.uint8).tobytes()).decode(), "scale": scale}


def _name(image: Any, default: str) -> str:
    return Path(image).name if isinstance(image, (str, Path)) else default
