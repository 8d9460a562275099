"""The page as static files with the model in them: :func:`write_site`, which any web server then serves."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cats.assets import asset
from cats.core.errors import ModelFileError
from cats.core.folders import check_folder, replaced_folder
from cats.core.geometry import Floats, identity_cells
from cats.core.images import read_image, resize
from cats.core.metadata import KEY, Metadata, read_onnx_metadata, trust_warning
from cats.core.onnx_file import content_digest, replace_entry, with_probabilities
from cats.core.tables import read_pairs, read_points
from cats.runtime.matcher import Matcher
from cats.runtime.viewer import MODULES, page_file, probability_knots, render_page
from cats.serving.npm import COI, ORT_WEB, fetch

SETTINGS = "cats-web.json"
"""What the page reads first; its presence also marks a folder as one that ``cats web`` wrote."""

SHARED_MODULES = ("main.js", "photos.js")
WASM_MODULES = ("wasm.js", "worker.js", "resize.js")

POLICY = (
    "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; worker-src 'self' blob:; connect-src 'self'; object-src 'none'; base-uri 'none'; "
    "form-action 'none'"
)
"""Content-Security-Policy of the page: the browser itself keeps it from talking to another origin."""

ISOLATION = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
"""Headers with which a browser gives a page shared memory, and with it threads."""

_PRIVACY = "Photos stay in this browser: nothing is uploaded."
_WASM_FILES = (
    "dist/ort.wasm.min.mjs",
    "dist/ort-wasm-simd-threaded.mjs",
    "dist/ort-wasm-simd-threaded.wasm",
)
_WEBGPU_FILES = (
    "dist/ort.webgpu.min.mjs",
    "dist/ort-wasm-simd-threaded.asyncify.mjs",
    "dist/ort-wasm-simd-threaded.asyncify.wasm",
)
_SAMPLE_SIDE = 1024
_MIT = """\
Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""
_TOLERANCE_PX = 0.05  # 99th percentile at 256 x 256, as cats-export asks of fp32
_PRECISIONS = ("fp32", "int8")


@dataclass(frozen=True)
class Sample:
    """A pair of photos that the page offers: JPEG data, what it is called, and points of a to begin with."""

    a: tuple[str, bytes]
    b: tuple[str, bytes]
    label: str
    points: Floats


def write_site(
    folder: Path, model: Path, *, samples: Sequence[Sample] | None = None, webgpu: bool = True, threads: bool = True
) -> int:
    """Write the page, the model and ONNX Runtime Web as static files.

    Args:
        folder: new, empty, or of an earlier call, which is then replaced as a whole.
        model: ONNX file of kind ``pair`` in fp32, fp16-storage or int8.
        samples: pairs that the page offers; None takes the shipped ones.
        webgpu: include the build for WebGPU, which is twice as large.
        threads: include a service worker that gives the page threads where the server sends no headers for them.

    Returns:
        Bytes written.

    Raises:
        InputError: the folder holds other things, or cannot be written.
        ModelFileError: not a model that browsers run.
        BackendError: npm or ONNX Runtime is not here.
    """
    check_folder(folder, SETTINGS, reads=[model])  # before anything is fetched
    metadata = read_onnx_metadata(model)
    _check_model(model, metadata)
    runtime = fetch(ORT_WEB, [*_WASM_FILES, *(_WEBGPU_FILES if webgpu else ())])
    worker = fetch(COI, ["coi-serviceworker.js", "LICENSE"]) if threads else {}
    with replaced_folder(folder, SETTINGS) as site:
        (site / "ort").mkdir()
        for name, data in runtime.items():
            (site / "ort" / Path(name).name).write_bytes(data)
        if worker:
            (site / "coi-serviceworker.js").write_bytes(worker["coi-serviceworker.js"])
            headers = "".join(f"  {name}: {value}\n" for name, value in ISOLATION.items())
            (site / "_headers").write_text(f"/*\n{headers}")
        (site / "LICENCES.txt").write_text(_licences(worker.get("LICENSE", b"").decode()))
        copy_page(site, WASM_MODULES, scripts=["coi-serviceworker.js"] if threads else [], privacy=_PRIVACY)
        shared = write_samples(site, shipped_samples() if samples is None else samples)
        model_file = site / model.name
        settings = {
            "matcher": "wasm",
            "samples": shared,
            "preprocessing": metadata.preprocessing.to_dict(),
            "calibration": probability_knots(metadata.calibration),
            "webgpu": webgpu and metadata.precision == "fp32",
            "webgpu_reason": "this site was written without it" if not webgpu else f"the model is {metadata.precision}",
            "selftest": _write_selftest(site, model, model_file),
            "model": {
                "file": model.name,
                "precision": metadata.precision,
                "verified": metadata.verified,
                "weights_sha256": metadata.weights_sha256,
            },
        }
        (site / SETTINGS).write_text(json.dumps(settings, indent=1, allow_nan=False) + "\n")
        return sum(path.stat().st_size for path in site.rglob("*") if path.is_file())


def copy_page(site: Path, modules: Sequence[str], *, scripts: Sequence[str] = (), privacy: str) -> None:
    """Write HTML, style and modules of the page into a folder.

    Args:
        modules: those of its matcher, from ``serving/page``.
        scripts: classic scripts to load before the page's own.
        privacy: the line that says where photos go.
    """
    for name in (*MODULES, "page.css"):
        (site / name).write_text(page_file(name), "utf-8")
    for name in (*SHARED_MODULES, *modules):
        (site / name).write_text(resources.files("cats.serving").joinpath("page", name).read_text("utf-8"), "utf-8")
    page = render_page(
        policy=POLICY,
        title="CATs: which point of B is this point of A?",
        engine="Starting …",
        privacy=privacy,
        scripts=list(scripts),
    )
    (site / "index.html").write_text(page, "utf-8")


def shipped_samples() -> list[Sample]:
    """The two shipped portraits, and one of them turned and enlarged, of which the right answer is known."""
    names = ("astronaut.jpg", "grace_hopper.jpg")
    a, b = ((name, asset(name).read_bytes()) for name in names)
    points = read_points(asset("astronaut.json"))[:5]
    portrait = read_image(asset(names[0]))
    turned = portrait.rotate(20, Image.Resampling.BICUBIC).crop((60, 40, 460, 440))
    return [
        Sample(a, b, "Two portraits", points),
        Sample(b, a, "The other way round", np.zeros((0, 2))),
        Sample(a, ("astronaut-turned.jpg", _jpeg(turned)), "The same, turned and enlarged", points),
    ]


def read_samples(table: Path) -> list[Sample]:
    """Pairs of a CSV (columns ``a``, ``b``, optionally ``points`` and ``label``) as samples.

    Photos are stored without EXIF data, and larger ones are made smaller.

    Raises:
        InputError: the table, a photo or a point is at fault.
    """
    samples = []
    for row in read_pairs(table):
        (a, scale), (b, _) = _small(row.a), _small(row.b)
        points = row.points_of_a()
        moved = np.zeros((0, 2)) if points is None else (points + 0.5) * scale - 0.5
        label = row.cells.get("label") or f"{row.a.stem}, {row.b.stem}"
        samples.append(Sample((f"{row.a.stem}.jpg", a), (f"{row.b.stem}.jpg", b), label, moved))
    return samples


def write_samples(site: Path, samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Write samples into a folder's ``samples``; returns what the page's settings say of them."""
    found = []
    for number, sample in enumerate(samples, 1):
        paths = []
        for side, (name, data) in zip("ab", (sample.a, sample.b), strict=True):
            path = Path("samples", f"{number}{side}", name)
            (site / path).parent.mkdir(parents=True)
            (site / path).write_bytes(data)
            paths.append(path.as_posix())
        found.append({"a": paths[0], "b": paths[1], "label": sample.label, "points": sample.points.tolist()})
    return found


def with_probabilities_file(model: Path, destination: Path) -> bool:
    """Write a model that also gives its probabilities, bound to its metadata; a copy where it has none.

    Returns:
        Whether it gives them.
    """
    metadata = read_onnx_metadata(model)
    data = with_probabilities(model, cells=metadata.grid[0] * metadata.grid[1])
    if data is None:
        shutil.copyfile(model, destination)
        return False
    # The flow is the same, so what the document says of it holds for the new file too.
    bound = metadata.with_(content=content_digest(data))
    destination.write_bytes(replace_entry(data, KEY, bound.to_json().encode()))
    return True


def _write_selftest(site: Path, model: Path, model_file: Path) -> dict[str, Any]:
    """The model in the page, and the pair with which a browser tests WebGPU: a picture of both inputs, and the flow."""
    gives = with_probabilities_file(model, model_file)
    with Matcher(model_file, "onnxruntime", provider="cpu") as matcher:
        size = matcher.metadata.preprocessing.size
        photos = [resize(read_image(asset(name)), size) for name in ("astronaut.jpg", "grace_hopper.jpg")]
        match = matcher.match(*photos)
    if gives and not _fit(match.probabilities, match.flow):
        shutil.copyfile(model, model_file)
    Image.fromarray(np.concatenate(photos, axis=1)).save(site / "selftest.png")
    return {
        "image": "selftest.png",
        "flow": [round(float(value), 6) for value in match.flow.ravel()],
        "grid": match.grid,
        "tolerance_px": _TOLERANCE_PX,
    }


def _fit(probabilities: Any, flow: Any) -> bool:
    """Whether these are distributions over b, row by row a cell of a, whose means are where the flow leads.

    Within half a cell: the soft-argmax weighs with learnt coordinates, which differ from the cells' own a little.
    """
    cells = identity_cells(flow.shape[-1])
    mean = (probabilities @ cells.reshape(2, -1).T).T.reshape(flow.shape)
    return bool(np.allclose(probabilities.sum(1), 1, atol=1e-3) and np.abs(mean - cells - flow).max() < 0.5)


def _check_model(model: Path, metadata: Metadata) -> None:
    if metadata.kind != "pair":
        raise ModelFileError(f"{model} is a model of kind {metadata.kind}: the page needs one for pairs of images")
    if metadata.changed:
        raise ModelFileError((trust_warning(metadata, model) or "").removeprefix("warning: "))
    if metadata.precision not in _PRECISIONS:
        raise ModelFileError(
            f"{model} computes in {metadata.precision}, which overflows silently in browsers: export it in fp32, "
            "with --weights fp16-storage where the file should be small"
        )


def _small(path: Path) -> tuple[bytes, Floats]:
    """A photo as a JPEG for the page, and by how much it was scaled in x and y."""
    image = read_image(path)
    small = image.copy()
    small.thumbnail((_SAMPLE_SIDE, _SAMPLE_SIDE), Image.Resampling.LANCZOS)
    return _jpeg(small), np.asarray(small.size) / np.asarray(image.size)


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, optimize=True, exif=b"")
    return buffer.getvalue()


def _licences(service_worker: str) -> str:
    text = (
        "This page is part of the CATs toolkit, Apache-2.0.\n\n"
        f"ort/: {ORT_WEB.name} {ORT_WEB.version}, {ORT_WEB.licence} licence, Copyright (c) Microsoft Corporation.\n"
        "Its third-party notices: https://github.com/microsoft/onnxruntime, ThirdPartyNotices.txt.\n\n"
        f"MIT License\n\n{_MIT}"
    )
    if service_worker:
        text += f"\ncoi-serviceworker.js: {COI.name} {COI.version}\n\n{service_worker}"
    return text
