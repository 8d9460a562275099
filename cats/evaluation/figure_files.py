"""Which pairs the figures show, and the files they are written to."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cats.core.console import note, progress
from cats.core.errors import InputError
from cats.core.files import write_text
from cats.core.outputs import make_folder
from cats.core.pck import Protocol, score_flow
from cats.core.protocols import PairMatcher
from cats.data.samples import PairDataset, Sample
from cats.evaluation.evaluate import flow_of

FIGURES = ("transfers", "attention", "correlation")
FORMATS = ("png", "pdf", "svg")
CONTENTS = "figures.json"
"""In a folder of figures: which files there are, and of which models and pairs."""


def parse_pick(text: str) -> str | int | tuple[int, ...]:
    """``even``, ``differ``, ``random`` or ``random:SEED`` (as the seed), or numbers of pairs, counted from 1.

    Raises:
        InputError: none of these.
    """
    if text in ("even", "differ"):
        return text
    if found := re.fullmatch(r"random(?::(\d{1,9}))?", text):
        return int(found[1] or 0)
    if re.fullmatch(r"[1-9]\d{0,8}(,[1-9]\d{0,8})*", text):
        return tuple(int(number) for number in text.split(","))
    raise InputError(f"pick {text!r} is not even, differ, random, random:SEED, or numbers of pairs such as 3,17,40")


def pick_pairs(
    dataset: PairDataset,
    pick: str | int | tuple[int, ...],
    count: int,
    matchers: Mapping[str, PairMatcher],
    protocol: Protocol,
    alpha: float,
) -> list[Sample]:
    """Annotated pairs for the figures.

    Args:
        dataset: to choose from.
        pick: of :func:`parse_pick`. ``differ`` matches every pair with every model and takes those whose share of right
            keypoints differs most between the best and the worst of them.
        count: of pairs, where ``pick`` does not name them.
        matchers: by name.
        protocol, alpha: what is right.

    Raises:
        InputError: no such pair; a named one, or all, are without keypoints; ``differ`` with one model.
    """
    if isinstance(pick, tuple):
        beyond = [number for number in pick if number > len(dataset)]
        if beyond:
            raise InputError(f"there is no pair {beyond[0]}: {dataset.root} has {len(dataset)}, counted from 1")
        chosen = [dataset[number - 1] for number in pick]
        bare = [sample.name for sample in chosen if not sample.annotated]
        if bare:
            raise InputError(f"{bare[0]} has no keypoints to draw")
        return chosen
    if pick == "even":
        chosen = [sample for sample in dataset.select(limit=count) if sample.annotated]
    elif pick == "differ":
        chosen = _most_different(dataset, count, matchers, protocol, alpha)
    else:
        order = np.random.default_rng(int(pick)).permutation(len(dataset))
        chosen = []
        for index in order:
            if len(chosen) < count and (sample := dataset[int(index)]).annotated:
                chosen.append(sample)
    if not chosen:
        raise InputError(f"{dataset.root}: the figures need pairs with keypoints, and the chosen ones have none")
    return chosen


def _most_different(
    dataset: PairDataset, count: int, matchers: Mapping[str, PairMatcher], protocol: Protocol, alpha: float
) -> list[Sample]:
    if len(matchers) < 2:
        raise InputError("pairs on which models differ need two models: name another one to draw beside the first")
    found: list[tuple[float, int, Sample]] = []
    with progress() as bar:
        for index in bar.track(range(len(dataset)), description="looking where the models differ"):
            sample = dataset[index]
            if not sample.annotated:
                continue
            images = [sample.read(side) for side in ("ab" if protocol.direction == "a->b" else "ba")]
            shares = [
                score_flow(sample.keypoints, flow_of(matcher.match(*images), sample.name), protocol).pck(alpha)
                for matcher in matchers.values()
            ]
            found = sorted([*found, (min(shares) - max(shares), index, sample)], key=lambda item: item[:2])[:count]
    return [sample for _, _, sample in found]


def draw_figures(
    matchers: Mapping[str, PairMatcher],
    samples: Sequence[Sample],
    protocols: Sequence[Protocol],
    alpha: float,
    folder: Path,
    *,
    figures: Sequence[str] = FIGURES,
    formats: Sequence[str] = ("png",),
) -> list[Path]:
    """Write the chosen figures of pairs with keypoints.

    ``transfers-PROTOCOL`` has a column for each model. ``attention-K`` and ``correlation-K`` are of pair K, for its
    first keypoint, and of checkpoints; with several models their names are in the files' names.

    Returns:
        The files.

    Raises:
        InputError: a file cannot be written.
        BackendError: matplotlib is not installed.
    """
    from cats.evaluation.transfers import draw_transfers, transfer

    make_folder(folder)
    written: list[Path] = []
    if "transfers" in figures:
        for protocol in protocols:
            stem = f"transfers-{'-'.join(protocol.name.replace('(', '').replace(')', '').split())}"
            rows = [[transfer(matcher, sample, protocol, alpha) for matcher in matchers.values()] for sample in samples]
            for suffix in formats:
                written.append(folder / f"{stem}.{suffix}")
                draw_transfers(rows, list(matchers), written[-1], describe_colours(protocol, alpha))
    inner = [name for name in figures if name != "transfers"]
    for name, matcher in matchers.items() if inner else ():
        written += _draw_inside(matcher, name, f"{name}-" if len(matchers) > 1 else "", samples, folder, inner, formats)
    return written


def write_contents(folder: Path, files: Sequence[Path], models: Sequence[Path], samples: Sequence[Sample]) -> None:
    """Write :data:`CONTENTS`: names of the files, of the models and of the pairs, in the order of the figures."""
    document = {
        "models": [str(model) for model in models],
        "pairs": [sample.name for sample in samples],
        "files": [path.name for path in files],
    }
    write_text(folder / CONTENTS, json.dumps(document, indent=2) + "\n")


def describe_colours(protocol: Protocol, alpha: float) -> str:
    """What the colours of a transfer mean, for the caption."""
    reference = "b" if protocol.direction == "a->b" else "a"
    threshold = {
        "box": f"larger side of the box in {reference}",
        "keypoints": f"larger extent of the keypoints in {reference}",
        "keypoints-padded": f"larger extent of the keypoints in {reference}, padded with -1",
        "image": f"larger side of {reference}",
    }[protocol.threshold]
    return f"green: right, within {alpha:g} x {threshold} (protocol {protocol.name}); red: wrong; blue: annotation"


def _draw_inside(
    matcher: Any,
    name: str,
    prefix: str,
    samples: Sequence[Sample],
    folder: Path,
    figures: Sequence[str],
    formats: Sequence[str],
) -> list[Path]:
    from cats.evaluation.figures import draw_attention, draw_correlation

    network = getattr(matcher, "model", None)
    if network is None:
        note(f"{name}: attention and correlation maps need a checkpoint: an exported model gives the flow only")
        return []
    if network.config.architecture != "cats":
        note(f"{name}: a model of architecture {network.config.architecture} has no correlation to be shown")
        return []
    written = []
    for number, sample in enumerate(samples, start=1):
        a, b = sample.read("a"), sample.read("b")
        at, to = ((float(points[0, 0]), float(points[0, 1])) for points in (sample.points_a, sample.points_b))
        for suffix in formats:
            if "attention" in figures:
                side, point = ("a", at) if network.config.swapping else ("b", to)
                written.append(folder / f"{prefix}attention-{number}.{suffix}")
                draw_attention(network, a, b, point, written[-1], side)
            if "correlation" in figures:
                written.append(folder / f"{prefix}correlation-{number}.{suffix}")
                draw_correlation(network, a, b, at, written[-1], truth=to)
    return written
