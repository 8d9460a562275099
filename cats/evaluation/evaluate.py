"""Evaluation of any matcher on annotated pairs, on dense ground truth and on random warps."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cats.core.errors import InputError, ModelFileError
from cats.core.geometry import dense_flow
from cats.core.pck import DEFAULT_ALPHAS, Direction, Protocol, preset, score_flow
from cats.core.protocols import Correspondence, PairMatcher, PairSet
from cats.data.samples import Sample
from cats.evaluation.results import (
    DenseResult,
    DenseScore,
    Evaluation,
    PairResult,
    summarise_dense,
    summarise_keypoints,
)

if TYPE_CHECKING:
    from cats.data.warps import WarpPairs  # needs OpenCV, which a machine that only runs models has not


def evaluate(
    matcher: PairMatcher,
    dataset: PairSet[Sample],
    protocols: Sequence[Protocol | str] = ("corrected",),
    alphas: Sequence[float] = DEFAULT_ALPHAS,
    *,
    batch_size: int = 1,
    on_pair: Callable[[], None] | None = None,
) -> Evaluation:
    """Measure a matcher on annotated pairs.

    Args:
        matcher: given paths, and Pillow images where a pair is shown mirrored.
        dataset: pairs with keypoints, or with dense ground truth, or some with this and some with that.
        protocols: :class:`cats.core.pck.Protocol` objects, or names of presets, which become those of ``dataset.kind``.
        alphas: of the PCK.
        batch_size: pairs of one run of the model.
        on_pair: called after each matched pair, for progress; see :func:`count_matches`.

    Raises:
        InputError: no pair, nothing annotated, a broken annotation, an image that is missing, unreadable or of another
            size than its annotation says, an alpha that is not positive.
        ModelFileError: the model gave a flow that is not finite.
    """
    start = time.perf_counter()
    chosen = resolve_protocols(protocols, dataset.kind)
    if not alphas or not all(alpha > 0 for alpha in alphas):
        raise InputError(f"alphas {list(alphas)}: give at least one, all positive")
    if not len(dataset):
        raise InputError(f"{dataset.root} has no pairs to evaluate")
    results: dict[int, PairResult] = {}
    for direction in _passes(dataset, chosen):
        wanted = [protocol for protocol in chosen if protocol.direction == direction]
        for index, sample, flow in _flows(matcher, dataset, direction, batch_size):
            result = results.setdefault(index, PairResult(sample.name, sample.category, dict(sample.difficulty)))
            if sample.annotated:
                for protocol in wanted:
                    result.scores[protocol.name] = score_flow(sample.keypoints, flow, protocol)
            if sample.dense is not None and direction == "a->b":
                result.dense = score_dense(sample, flow, alphas)
            if on_pair is not None:
                on_pair()
    pairs = [results[index] for index in range(len(dataset))]
    if not any(pair.scores or pair.dense for pair in pairs):
        raise InputError(
            f"{dataset.root}: no pair has keypoints in both images or dense ground truth; there is nothing to measure"
        )
    return Evaluation(
        data={
            "kind": dataset.kind,
            "split": dataset.split,
            "description": dataset.description,
            "pairs": len(pairs),
        },
        alphas=tuple(alphas),
        protocols=summarise_keypoints(pairs, chosen, alphas),
        dense=summarise_dense(pairs, alphas),
        pairs=pairs,
        seconds=time.perf_counter() - start,
    )


def evaluate_warps(
    matcher: PairMatcher,
    pairs: WarpPairs,
    count: int = 64,
    alphas: Sequence[float] = DEFAULT_ALPHAS,
    *,
    batch_size: int = 1,
    on_pair: Callable[[], None] | None = None,
) -> Evaluation:
    """Measure a matcher on random warps of photos, whose true flow is known.

    Args:
        matcher: see :func:`evaluate`; it is given uint8 arrays (S, S, 3).
        pairs: warps with the matcher's grid; the first ``count`` of them are used.
        alphas: of the share of cells within ``alpha * S``.

    Returns:
        Only ``dense`` is filled: mean end-point error over all visible cells in pixels of the S x S images.

    Raises:
        InputError: the warps have another grid than the model's flow.
        ModelFileError: the model gave a flow that is not finite.
    """
    start = time.perf_counter()
    truths: deque[dict[str, Any]] = deque()

    def images() -> Iterator[tuple[Any, Any]]:
        for index in range(count):
            truths.append(pairs[index])
            yield truths[-1]["image_a"], truths[-1]["image_b"]

    distances: list[NDArray[np.float64]] = []
    for match in matcher.match_many(images(), batch_size=batch_size):
        truth = truths.popleft()
        flow = flow_of(match, f"warp {len(distances)}")
        if flow.shape != truth["flow"].shape:
            raise InputError(f"the model's grid is {flow.shape[-1]}, that of the warps {pairs.grid}")
        error = np.linalg.norm((flow - truth["flow"]).astype(np.float64), axis=0)[truth["visible"]]
        distances.append(error * pairs.size / pairs.grid)
        if on_pair is not None:
            on_pair()
    pooled = np.concatenate(distances)
    rates = {alpha: 100 * float((pooled <= alpha * pairs.size).mean()) for alpha in alphas}
    data = {
        "kind": "warps",
        "split": None,
        "description": f"{count} random warps of {len(pairs.folder)} photos, seed {pairs.seed}, {pairs.size} px",
        "pairs": count,
    }
    dense = DenseResult(float(pooled.mean()), rates, {}, count)
    return Evaluation(data, tuple(alphas), {}, dense, [], time.perf_counter() - start)


def resolve_protocols(protocols: Sequence[Protocol | str], kind: str) -> list[Protocol]:
    """Presets by name for a kind of data set; raises :class:`InputError` for unknown or repeated names, or none."""
    chosen = [preset(item, kind) if isinstance(item, str) else item for item in protocols]
    names = [protocol.name for protocol in chosen]
    if not names or len(set(names)) < len(names):
        raise InputError(f"protocols {names}: give at least one, each once, under different names")
    return chosen


def count_matches(dataset: PairSet[Sample], protocols: Sequence[Protocol]) -> int:
    """How often :func:`evaluate` will call ``on_pair``: each direction is one pass over the pairs."""
    return len(dataset) * len(_passes(dataset, protocols))


def score_dense(sample: Sample, flow: NDArray[np.floating[Any]], alphas: Sequence[float]) -> DenseScore:
    """Compare a flow (2, G, G) in cells a -> b with the dense ground truth of a sample, at full resolution of a."""
    if sample.dense is None:
        raise InputError(f"{sample.name} has no dense ground truth")
    truth = sample.dense()
    estimate = dense_flow(flow, sample.size_a, sample.size_b)
    distance = np.linalg.norm((estimate - truth.flow)[truth.valid].astype(np.float64), axis=-1)
    side = max(sample.size_b)
    rates = {alpha: 100 * float((distance <= alpha * side).mean()) for alpha in alphas}
    return DenseScore(float(distance.mean()), rates, int(distance.size))


def flow_of(result: Correspondence, name: str) -> NDArray[np.floating[Any]]:
    """The flow (2, G, G) of what a matcher returned, checked.

    Raises:
        ModelFileError: not such an array, or not finite.
    """
    flow = np.asarray(result.flow)
    if flow.ndim != 3 or flow.shape[0] != 2 or flow.shape[1] != flow.shape[2]:
        raise ModelFileError(f"the matcher gave a flow of shape {flow.shape} for {name}; expected (2, G, G)")
    if not np.isfinite(flow).all():
        raise ModelFileError(
            f"the model gave a flow with values that are not finite for {name}: its weights or its precision are broken"
        )
    return flow


def _passes(dataset: PairSet[Sample], protocols: Sequence[Protocol]) -> list[Direction]:
    """Directions in which the pairs must be matched; dense ground truth is always a -> b."""
    directions = list(dict.fromkeys(protocol.direction for protocol in protocols))
    if len(dataset) and dataset[0].dense is not None:
        return list(dict.fromkeys([*(directions if dataset[0].annotated else []), "a->b"]))
    return directions


def _flows(
    matcher: PairMatcher, dataset: PairSet[Sample], direction: Direction, batch_size: int
) -> Iterator[tuple[int, Sample, NDArray[np.floating[Any]]]]:
    """Index, sample and flow of every pair, matched in the given direction."""
    waiting: deque[Sample] = deque()

    def pairs() -> Iterator[tuple[Any, Any]]:
        for sample in dataset:
            waiting.append(sample)
            a, b = (_image(sample, side) for side in "ab")
            yield (a, b) if direction == "a->b" else (b, a)

    for index, match in enumerate(matcher.match_many(pairs(), batch_size=batch_size)):
        sample = waiting.popleft()
        _check_sizes(match, sample, direction)
        yield index, sample, flow_of(match, sample.name)


def _image(sample: Sample, side: str) -> Any:
    """The file, so that the matcher's threads decode it; mirrored images are decoded here."""
    mirrored, path = (sample.mirror_a, sample.image_a) if side == "a" else (sample.mirror_b, sample.image_b)
    return sample.read(side) if mirrored else path


def _check_sizes(match: Correspondence, sample: Sample, direction: Direction) -> None:
    first, second = (sample.size_a, sample.size_b) if direction == "a->b" else (sample.size_b, sample.size_a)
    for have, want in ((getattr(match, "size_a", first), first), (getattr(match, "size_b", second), second)):
        if tuple(have) != tuple(want):
            raise InputError(
                f"an image of {sample.name} has {have[0]}x{have[1]} pixels, its annotation says {want[0]}x{want[1]}: "
                "the data set is mixed up, unpack it again"
            )
