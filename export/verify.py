"""Parity of a model file with PyTorch, in pixels that a person understands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import torch

from cats.core.console import note, stderr
from cats.data.photo_pairs import PhotoPairs
from cats.evaluation.parity import (
    REFINED_TOLERANCE,
    TOLERANCE,
    Outputs,
    Parity,
    measure_parity,
    pck_drift,
    print_figures,
)
from cats.evaluation.torch_matcher import TorchMatcher
from cats.export.exported import ExportedModel, Floats, PeakSession, run_photos
from cats.export.fp16.assign import LARGE_ACTIVATION
from cats.export.modules import module_of
from cats.model import CATs

BATCHES = (1, 2, 3)
"""Sizes in which pairs are run by turns where the batch is dynamic; 2 is the one that export traces."""

Batch = tuple[Floats, Floats]
"""Inputs of images a and b, (B, 3, S, S)."""


def compare(expected: Outputs, actual: Outputs, *, tolerance: float, source: str, against: str) -> Parity:
    """:func:`~cats.evaluation.parity.measure_parity`, and whether what is expected is of weights that say little."""
    parity = measure_parity(expected, actual, tolerance=tolerance, source=source, against=against)
    return replace(parity, argmax=jumps_without_order(expected[0]))


def jumps_without_order(flow: Floats) -> bool:
    """Whether the flow jumps between neighbours (median above 2 cells), as of weights that are neither trained nor
    zero-started. Measured on the demo pairs: cats-tiny 0.4 cells, zero-started 1.0, random aggregators 3.7 to 7.2."""
    jumps = np.concatenate([np.linalg.norm(np.diff(flow, axis=axis), axis=1).ravel() for axis in (2, 3)])
    return bool(np.median(jumps) > 2)


def run_torch(model: CATs, batches: list[Batch]) -> Outputs:
    """Flow and confidence of batches of inputs by PyTorch in float32, concatenated."""
    with torch.no_grad():
        results = [model.match(torch.from_numpy(a), torch.from_numpy(b)) for a, b in batches]
    flow, confidence = (torch.cat(part).numpy() for part in zip(*results, strict=True))
    return flow, confidence


def make_batches(model: CATs, pairs: PhotoPairs, batch: int | None) -> list[Batch]:
    """Inputs of all pairs in batches: of ``batch`` (the last filled up), or of :data:`BATCHES` by turns."""
    items = list(pairs.inputs(model.config.preprocessing))
    batches, turn = [], 0
    while items:
        size = batch or BATCHES[turn % len(BATCHES)]
        part, items = items[:size], items[size:]
        if batch:
            part += [part[-1]] * (batch - len(part))
        batches.append((np.stack([a for a, _ in part]), np.stack([b for _, b in part])))
        turn += 1
    return batches


def verify(
    models: Mapping[str, onnx.ModelProto],
    model: CATs,
    pairs: PhotoPairs,
    *,
    batch: int | None,
    precision: str,
    data: str | None = None,
) -> Parity:
    """Compare exported files in ONNX Runtime with ``model`` in PyTorch.

    ONNX Runtime computes float16 models in float32 on a CPU, without rounding: what is judged are the same models with
    every rounding to float16 made explicit. That ONNX Runtime loads the files as they are is checked too.

    Args:
        models: kind -> file, all kinds of one form (:data:`cats.export.forms.FORMS`).
        batch: the files' fixed batch size, None where it is free.
        precision: key of :data:`cats.evaluation.parity.TOLERANCE`.
        data: annotated pairs as ``KIND:DIR``, to measure the drift of PCK too.

    Raises:
        InputError: an image or data set cannot be read.
    """
    exported = ExportedModel(models, model.config.preprocessing, batch)
    how = ""
    if exported.in_half:
        how = ", each value rounded to float16 where the file has it so,"
        for file in models.values():
            PeakSession(file)
    points_px = None
    if exported.takes_pixels:
        actual, points_px = run_photos(exported, pairs)
        expected = run_torch(model, make_batches(model, pairs, None))
    else:
        batches = make_batches(model, pairs, batch)
        outputs = [exported.run(a, b) for a, b in batches]
        flow, confidence = (np.concatenate([out[k] for out in outputs]) for k in ("flow", "confidence"))
        actual, expected = (flow, confidence), run_torch(model, batches)
    parity = compare(
        expected,
        actual,
        tolerance=TOLERANCE[precision],
        source=f"{len(pairs)} pairs, {pairs.name}",
        against=f"ONNX Runtime on the CPU{how} against PyTorch in float32",
    )
    if parity.argmax and not parity.passed and not exported.takes_pixels and precision in REFINED_TOLERANCE:
        parity = replace(
            parity,
            refined=score_difference(models, model, batches[:2], batch),
            refined_tolerance=REFINED_TOLERANCE[precision],
        )
    return replace(
        parity,
        points_px=points_px,
        pck=pck_drift({"pytorch": TorchMatcher(model), "exported": exported}, data) if data else None,
        activations=summarize_peaks(exported.peaks()) if exported.in_half else None,
    )


def score_difference(
    models: Mapping[str, onnx.ModelProto], model: CATs, batches: list[Batch], batch: int | None
) -> float | None:
    """How far the refined correlation of exported files is from PyTorch's: root mean square of the difference by that
    of the values; None of models without a soft-argmax."""
    watched = dict(models)
    kind = "pair" if "pair" in models else "matcher"
    watched[kind] = onnx.ModelProto()
    watched[kind].CopyFrom(models[kind])
    nodes = [node for node in watched[kind].graph.node if node.op_type == "Softmax"]
    scores = next((node.input[0] for node in nodes if module_of(node) == "soft_argmax"), None)
    if scores is None:
        return None
    output = onnx.helper.make_tensor_value_info(scores, onnx.TensorProto.FLOAT, None)
    watched[kind].graph.output.append(output)
    exported = ExportedModel(watched, model.config.preprocessing, batch)
    difference, size = 0.0, 0.0
    for a, b in batches:
        with torch.no_grad():
            features = [model.features(torch.from_numpy(image)) for image in (a, b)]
            expected = model.match_features(*features).transpose(1, 2).numpy()  # rows a, columns b, as in the file
        actual = exported.run(a, b)[scores].astype(np.float64) * model.config.temperature
        difference += float(np.square(actual - expected).sum())
        size += float(np.square(expected).sum())
    share = (difference / max(size, 1e-30)) ** 0.5
    return share if np.isfinite(share) else 1e6


def summarize_peaks(peaks: Mapping[str, float]) -> dict[str, Any]:
    """Say how near the values of a float16 model come to its end.

    Args:
        peaks: largest absolute value by tensor, in the order of computation.

    Returns:
        ``largest``, ``tensor`` and ``module`` of the largest; ``above``: for each module with values above
        :data:`LARGE_ACTIVATION`, its name and largest value, in the order of computation. Infinity is 1e38.
    """
    finite = {name: min(value, 1e38) for name, value in peaks.items()}
    tensor = max(finite, key=lambda name: finite[name])
    above: dict[str, float] = {}
    for name, value in finite.items():
        module = name.rpartition("/")[0]
        if value > LARGE_ACTIVATION:
            above[module] = max(value, above.get(module, 0))
    return {
        "limit": LARGE_ACTIVATION,
        "largest": finite[tensor],
        "tensor": tensor,
        "module": tensor.rpartition("/")[0],
        "above": [[module, value] for module, value in above.items()],
    }


def print_parity(parity: Parity, title: str) -> None:
    """Show the figures as a table on stderr, and what they warn of."""
    heading = f"{title}: {parity.against}, {parity.source}"
    print_figures(parity, heading, ("PyTorch", "exported"), px=".4f", confidence=".1e")
    for module, value in (parity.activations or {}).get("above", []):
        note(
            f"warning: values of {module} reach {value:.4g} and float16 ends at 65504: leave it in float32, "
            f"--float32 {module}"
        )
    if parity.argmax:
        judged = ""
        if parity.refined is not None:
            judged = (
                f". Judged instead by the refined correlation, which differs by {100 * parity.refined:.2g} % "
                f"(at most {100 * (parity.refined_tolerance or 0):.2g} %): " + ("passed" if parity.passed else "FAILED")
            )
        stderr.print(
            "note: these weights look neither trained nor zero-started: their flow jumps from cell to cell without "
            f"order, where ties flip, so the difference says little about trained weights{judged}",
            markup=False,
        )
