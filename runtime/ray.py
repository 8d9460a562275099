"""Matching and evaluating millions of pairs as a Ray Data pipeline: one :class:`~cats.runtime.Matcher` per actor.

::

    import ray
    from cats.runtime.ray import evaluate_pairs, match_pairs

    pairs = ray.data.read_csv("pairs.csv")  # columns a, b and optionally points
    match_pairs(pairs, "cats.onnx", concurrency=(1, 8), num_cpus=2).write_parquet("matches")
    evaluate_pairs(annotated, "cats.onnx", concurrency=(1, 4), num_gpus=1).pck[0.1]

A thin adapter over ``ray.data.map_batches``: where data comes from and goes to, how it is spread over machines and how
workers that die are replaced is Ray's. Model, images and the toolkit must be on every node under the same paths.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cats.assets import find_model
from cats.core.errors import CatsError, InputError, require
from cats.core.geometry import Floats, as_points
from cats.core.pck import DEFAULT_ALPHAS, PairKeypoints, Protocol, preset, score_flow
from cats.core.tables import parse_points
from cats.runtime.backends import choose_backend
from cats.runtime.matcher import Matcher, find_file
from cats.runtime.result import Match

Dataset = Any
"""``ray.data.Dataset``; Ray is imported when it is used."""

ERRORS_KEPT = 20


def match_pairs(
    dataset: Dataset,
    model: str | Path,
    *,
    concurrency: int | tuple[int, int] = 1,
    batch_size: int = 16,
    num_cpus: float = 1,
    num_gpus: float = 0,
    folder: str | Path = ".",
    **options: Any,
) -> Dataset:
    """Match every pair of a Ray data set; lazy, as all of Ray Data.

    Args:
        dataset: rows with image files ``a`` and ``b``, and optionally ``points`` of a in pixels: ``[[x, y], ...]``, or
            text as in a pairs CSV. Other columns are passed on.
        model: ONNX file, or engine with its sidecar.
        concurrency: actors, or the fewest and the most. The fewest must leave a CPU for reading and writing.
        batch_size: pairs of one run of the model.
        num_cpus: CPUs that an actor takes, which are the threads of ONNX Runtime unless ``threads`` is given.
        num_gpus: GPUs that an actor takes. An ONNX file then runs on CUDA, and with 0 on the CPU, unless ``provider``
            is given.
        folder: where relative paths begin.
        options: of :class:`~cats.runtime.Matcher`: ``backend``, ``max_pixels``, ``provider``, ``threads``, ...

    Returns:
        The rows with further columns. ``size_a``, ``size_b``: [width, height]. With ``points``: ``points_b``
        [[x, y], ...] in pixels of b and ``confidence`` [c, ...] of each. Without: ``flow`` (2, G, G) float32 in cells
        a -> b and ``confidence`` (G, G). ``error``: null, or why this pair was not matched; its results are then empty
        lists or NaN. Order is Ray's; a row is there once, whatever workers died.

    Raises:
        InputError: a setting out of range, or columns are missing or would be overwritten.
        ModelFileError: the model is missing or of another kind.
        BackendError: Ray is not installed. What actors raise, Ray raises when the data set is consumed.
    """
    columns = _columns(dataset, needed=("a", "b"))
    results = {"size_a", "size_b", "confidence", "error", "points_b" if "points" in columns else "flow"}
    taken = results & set(columns)
    if taken:
        raise InputError(f"the data set already has the columns {', '.join(sorted(taken))}: rename them")
    settings = _settings(model, folder, batch_size, num_cpus, num_gpus, options)
    return _map(dataset, _MatchPairs, settings, concurrency, num_cpus, num_gpus)


@dataclass(frozen=True)
class BulkEvaluation:
    """PCK of many pairs.

    Attributes:
        protocol: that was measured.
        pck: alpha -> percent.
        by_category: category -> the same, where the rows have a column ``category``.
        pairs: that were scored.
        failures: pairs that could not be, and do not count.
        errors: ``a -> b: why`` of the first :data:`ERRORS_KEPT` failures.
    """

    protocol: Protocol
    pck: dict[float, float]
    by_category: dict[str, dict[float, float]]
    pairs: int
    failures: int
    errors: list[str]


def evaluate_pairs(
    dataset: Dataset,
    model: str | Path,
    *,
    protocol: Protocol | str = "corrected",
    kind: str = "pairs",
    alphas: Sequence[float] = DEFAULT_ALPHAS,
    concurrency: int | tuple[int, int] = 1,
    batch_size: int = 16,
    num_cpus: float = 1,
    num_gpus: float = 0,
    folder: str | Path = ".",
    **options: Any,
) -> BulkEvaluation:
    """PCK of a model on annotated pairs, by :mod:`cats.core.pck`.

    Args:
        dataset: rows with ``a``, ``b`` and corresponding ``points_a``, ``points_b`` [[x, y], ...] in pixels; optionally
            ``box_a``, ``box_b`` [x_min, y_min, x_max, y_max] and ``category``. :func:`annotated_rows` makes them.
        protocol: or the name of a preset, which becomes that of ``kind`` (``spair``, ``pfpascal``, ``willow``, ...).
        alphas: of the PCK.
        model, concurrency, batch_size, num_cpus, num_gpus, folder, options: see :func:`match_pairs`.

    Raises:
        InputError: also where no pair could be scored, with the first reason.
    """
    chosen = preset(protocol, kind) if isinstance(protocol, str) else protocol
    if not alphas or not all(alpha > 0 for alpha in alphas):
        raise InputError(f"alphas {list(alphas)}: give at least one, all positive")
    _columns(dataset, needed=("a", "b", "points_a", "points_b"))
    settings = _settings(model, folder, batch_size, num_cpus, num_gpus, options)
    settings |= {"protocol": chosen, "alphas": tuple(alphas)}
    scored = _map(dataset, _ScorePairs, settings, concurrency, num_cpus, num_gpus)
    return _summarise(scored.iter_rows(), chosen, tuple(alphas))


def annotated_rows(samples: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """Rows for :func:`evaluate_pairs` from a data set of :mod:`cats.data`: ``ray.data.from_items(list(...))``.

    Raises:
        InputError: a sample is shown mirrored, which a row cannot say.
    """
    for sample in samples:
        if sample.mirror_a or sample.mirror_b:
            raise InputError(f"{sample.name} is mirrored: bulk evaluation takes images as they are in their files")
        yield {
            "a": str(sample.image_a),
            "b": str(sample.image_b),
            "points_a": sample.points_a.tolist(),
            "points_b": sample.points_b.tolist(),
            "box_a": list(sample.box_a) if sample.box_a else None,
            "box_b": list(sample.box_b) if sample.box_b else None,
            "category": sample.category,
        }


class _Worker:
    """One actor: a loaded matcher, and where relative paths begin."""

    def __init__(self, model: str, folder: str, batch_size: int, options: dict[str, Any]) -> None:
        self.matcher, self.folder, self.batch_size = Matcher(model, **options), Path(folder), batch_size

    def match(self, rows: list[dict[str, Any]], first: str = "a", second: str = "b") -> list[Match | CatsError]:
        """A match of each row, or why there is none."""
        pairs = [(self._source(row[first]), self._source(row[second])) for row in rows]
        return list(self.matcher.match_many(pairs, batch_size=self.batch_size, return_errors=True))

    @staticmethod
    def read(table: Any, names: tuple[str, ...]) -> list[dict[str, Any]]:
        """Rows of those columns that there are."""
        return table.select([name for name in names if name in table.column_names]).to_pylist()

    def points(self, value: Any) -> Floats:
        """Points of a row, from numbers or text; none are (0, 2)."""
        if isinstance(value, str):
            return parse_points(value, self.folder)[:, :2] if value.strip() else np.zeros((0, 2))
        return as_points([] if value is None else value)

    def _source(self, value: Any) -> Any:
        return self.folder / value if isinstance(value, str) else value  # what is no path is refused by name


class _MatchPairs(_Worker):
    """Appends flow or transferred points."""

    def __call__(self, table: Any) -> Any:
        pa = _import("pyarrow")
        rows = self.read(table, ("a", "b", "points"))
        columns = _Columns(self.matcher.metadata.grid[0], has_points="points" in table.column_names)
        for row, match in zip(rows, self.match(rows), strict=True):
            try:
                if isinstance(match, CatsError):
                    raise match
                columns.add(match, self.points(row["points"]) if columns.has_points else None)
            except InputError as error:
                columns.fail(str(error))
        for name, values in columns.arrays(pa).items():
            table = table.append_column(name, values)
        return table


class _Columns:
    """The results of one batch, column by column."""

    def __init__(self, grid: int, has_points: bool) -> None:
        self.has_points = has_points
        self._empty = (np.full((2, grid, grid), np.nan, np.float32), np.full((grid, grid), np.nan, np.float32))
        self._results: list[tuple[Any, Any]] = []
        self._sizes: list[tuple[list[int], list[int]]] = []
        self._errors: list[str | None] = []

    def add(self, match: Match, points: Floats | None) -> None:
        """A pair that was matched; raises :class:`InputError` for points outside the image, adding nothing."""
        if points is None:
            result: tuple[Any, Any] = (match.flow, match.confidence)
        else:
            result = (match.transfer(points).tolist(), match.confidence_at(points).tolist())
        self._results.append(result)
        self._sizes.append((list(match.size_a), list(match.size_b)))
        self._errors.append(None)

    def fail(self, message: str) -> None:
        """A pair that was not."""
        self._results.append(([], []) if self.has_points else self._empty)
        self._sizes.append(([], []))
        self._errors.append(_text(message))

    def arrays(self, pa: Any) -> dict[str, Any]:
        """Name -> Arrow array. Types are given, so that batches without a single result fit the others."""
        first, second = zip(*self._results, strict=True)
        sizes = zip(("size_a", "size_b"), zip(*self._sizes, strict=True), strict=True)
        arrays = {name: pa.array(list(values), pa.list_(pa.int32())) for name, values in sizes}
        if self.has_points:
            arrays["points_b"] = pa.array(list(first), pa.list_(pa.list_(pa.float64())))
            arrays["confidence"] = pa.array(list(second), pa.list_(pa.float64()))
        else:
            tensors = _import("ray.data.extensions").ArrowTensorArray
            arrays["flow"] = tensors.from_numpy(np.stack(first))
            arrays["confidence"] = tensors.from_numpy(np.stack(second))
        return {**arrays, "error": pa.array(self._errors, pa.string())}


class _ScorePairs(_Worker):
    """Replaces annotated rows by their number of points, and of right ones at each alpha."""

    def __init__(self, *, protocol: Protocol, alphas: tuple[float, ...], **settings: Any) -> None:
        super().__init__(**settings)
        self.protocol, self.alphas = protocol, alphas

    def __call__(self, table: Any) -> Any:
        pa = _import("pyarrow")
        rows = self.read(table, ("a", "b", "points_a", "points_b", "box_a", "box_b", "category"))
        matches = self.match(rows, *self.protocol.direction.split("->"))
        scored = [self._score(row, match) for row, match in zip(rows, matches, strict=True)]
        schema = [("points", pa.int64()), ("correct", pa.list_(pa.int64())), ("category", pa.string())]
        return pa.Table.from_pylist(scored, pa.schema([*schema, ("error", pa.string())]))

    def _score(self, row: dict[str, Any], match: Match | CatsError) -> dict[str, Any]:
        name = f"{row['a']} -> {row['b']}"
        category = row.get("category")
        result: dict[str, Any] = {"category": None if category is None else str(category), "error": None}
        try:
            if isinstance(match, CatsError):
                raise match
            size_a, size_b = match.size_a, match.size_b
            if self.protocol.direction == "b->a":
                size_a, size_b = size_b, size_a
            points_a, points_b = self.points(row["points_a"]), self.points(row["points_b"])
            boxes = (row.get("box_a"), row.get("box_b"))
            pair = PairKeypoints(points_a, points_b, size_a, size_b, *boxes, name=name)
            score = score_flow(pair, match.flow, self.protocol)
        except InputError as error:
            return {**result, "points": 0, "correct": [0] * len(self.alphas), "error": _text(f"{name}: {error}")}
        correct = [int(score.correct(alpha).sum()) for alpha in self.alphas]
        return {**result, "points": len(score.distances), "correct": correct}


def _summarise(rows: Iterable[dict[str, Any]], protocol: Protocol, alphas: tuple[float, ...]) -> BulkEvaluation:
    """Percentages as :func:`cats.core.pck.pck` defines them, from counts, so that rows need not be kept."""
    totals: dict[str | None, Any] = defaultdict(lambda: np.zeros(len(alphas) + 1))
    pairs = failures = 0
    errors: list[str] = []
    for row in rows:
        if row["error"] is not None:
            failures += 1
            errors += [row["error"]] if len(errors) < ERRORS_KEPT else []
        elif row["points"]:
            pairs += 1
            right = np.array([*row["correct"], row["points"]], np.float64)
            # The last place counts what the others are a share of: pairs, or points.
            totals[row["category"]] += right / row["points"] if protocol.reduction == "pair" else right
    if not pairs:
        raise InputError(f"no pair could be scored: {errors[0] if errors else 'none has keypoints'}")

    def percent(total: Any) -> dict[float, float]:
        return {alpha: 100 * float(right / total[-1]) for alpha, right in zip(alphas, total[:-1], strict=True)}

    by_category = {name: percent(total) for name, total in sorted(totals.items(), key=str) if name is not None}
    return BulkEvaluation(protocol, percent(sum(totals.values())), by_category, pairs, failures, errors)


def _text(message: str) -> str:
    """A message that Arrow takes: a lone surrogate, as names of files may have, would end the whole block."""
    return message.encode("utf-8", "backslashreplace").decode()


def _import(module: str) -> Any:
    return require(module, extra="ray", purpose="match in bulk with cats.runtime.ray")


def _columns(dataset: Dataset, needed: tuple[str, ...] = ()) -> list[str]:
    """Names of the columns of a data set that is one of Ray's and has the needed ones."""
    data = _import("ray.data")
    if not isinstance(dataset, data.Dataset):
        raise InputError(f"a data set of type {type(dataset).__name__}: give a ray.data.Dataset")
    names = list(dataset.columns() or [])
    missing = [name for name in needed if name not in names]
    if missing:
        raise InputError(f"the data set has no column {', '.join(missing)}; it has {', '.join(names) or 'none'}")
    return names


def _settings(
    model: str | Path, folder: str | Path, batch_size: int, num_cpus: float, num_gpus: float, options: dict[str, Any]
) -> dict[str, Any]:
    """Arguments of a worker, checked here so that a mistake is one error and not one of every actor."""
    if batch_size < 1 or num_cpus < 0 or num_gpus < 0:
        raise InputError(f"batch_size {batch_size}, num_cpus {num_cpus}, num_gpus {num_gpus}: too small")
    if choose_backend(find_file(model), options.get("backend")) == "onnxruntime":
        options = {"provider": "cuda" if num_gpus else "cpu", "threads": max(1, int(num_cpus)), **options}
    places = {"model": str(find_model(model).absolute()), "folder": str(Path(folder).resolve())}
    return {**places, "batch_size": batch_size, "options": options}


def _check_room(cluster: dict[str, float], actors: int, num_cpus: float, num_gpus: float) -> None:
    """Refuse what would wait for ever: more than there is, or all CPUs, of which reading and writing need one."""
    for kind, each, spare in (("CPU", num_cpus, 1), ("GPU", num_gpus, 0)):
        there = cluster.get(kind, 0)
        if each and actors * each + spare > there:
            fits = int((there - spare) / each)
            advice = f"concurrency={fits}" if fits > 0 else f"num_{kind.lower()}s={max(there - spare, 0) / 2:g}"
            wanted = f"{actors} actor{'' if actors == 1 else 's'} with {each:g} {kind}{'' if each == 1 else 's'} each"
            raise InputError(
                f"{wanted}{' and one for reading and writing' if spare else ''}: this Ray cluster has {there:g}, and "
                f"they would wait for ever; give {advice}, or concurrency=(1, {actors}) where the cluster grows itself"
            )


def _map(
    dataset: Dataset,
    worker: type[_Worker],
    settings: dict[str, Any],
    concurrency: int | tuple[int, int],
    num_cpus: float,
    num_gpus: float,
) -> Dataset:
    data = _import("ray.data")
    fewest, most = (concurrency, concurrency) if isinstance(concurrency, int) else concurrency
    if not 1 <= fewest <= most:
        raise InputError(f"concurrency {concurrency}: give the number of actors, or the fewest and the most")
    _check_room(_import("ray").cluster_resources(), fewest, num_cpus, num_gpus)
    return dataset.map_batches(
        worker,
        fn_constructor_kwargs=settings,
        batch_size=settings["batch_size"],
        batch_format="pyarrow",
        compute=data.ActorPoolStrategy(min_size=fewest, max_size=most),
        num_cpus=num_cpus,
        num_gpus=num_gpus or None,
    )
