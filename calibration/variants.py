"""One model with some modules in lower precision: built, run on the same pairs, compared, remembered."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from cats.calibration.calibrate import FloatModel, check_ranges, measure_ranges
from cats.calibration.graph import QUANTIZABLE, Graph, quantizable_modules
from cats.calibration.quantize import RoundedWeights, quantize
from cats.calibration.ranges import Ranges
from cats.calibration.sessions import ProbeSession, SessionMatcher, fixed_batch, sums_are_exact
from cats.core.errors import InputError
from cats.core.files import write_text
from cats.core.json_text import read_json
from cats.data import open_dataset
from cats.data.photo_pairs import Feeds, PhotoPairs, photos_from_data
from cats.data.samples import PairDataset
from cats.evaluation.parity import flow_distance
from cats.export.fp16.assign import find_half_tensors, to_fp16
from cats.export.fp16.input_moments import measure_moments
from cats.export.modules import module_of

PRECISIONS = ("int8", "fp8", "fp16")
ALPHA = 0.1
VALIDATION = 12
"""Pairs to judge variants by."""

_LARGEST_STATE = 64 << 20
_MACS_PER_ELEMENT = 20  # that a CPU does while it reads or writes one value


@dataclass(frozen=True)
class Effect:
    """What a variant does against the float model.

    Attributes:
        median_px, p99_px, max_px: difference of the flow in pixels at 256 x 256.
        pck_drop: PCK@0.1 of the float model less that of the variant, in points; None without annotated pairs.
    """

    median_px: float
    p99_px: float
    max_px: float
    pck_drop: float | None


def _read_effect(values: dict[str, Any]) -> Effect:
    """An effect out of a state; raises ``TypeError`` where it is none."""
    effect = Effect(**values)
    drop = () if effect.pck_drop is None else (effect.pck_drop,)
    if any(type(value) not in (int, float) for value in (effect.median_px, effect.p99_px, effect.max_px, *drop)):
        raise TypeError("an effect consists of numbers")
    return effect


class Variants:
    """Variants of a float model in which all modules but some are in a lower precision.

    Args:
        source: of :func:`cats.calibration.calibrate.load_float_model`.
        ranges: of the activations; not needed for fp16.
        pairs: to compare on.
        precision: ``int8``, ``fp8`` or ``fp16``; float16 is computed in float32 with each rounding made explicit, so
            that its times say nothing about a GPU.
        options: further arguments of :func:`cats.calibration.quantize.quantize`.
        dataset: annotated pairs for PCK.
        threads: CPU threads; None takes all.
        state: JSON file in which every measured variant is kept, so that a killed run goes on.

    Attributes:
        candidates: modules that can be in lower precision, in graph order.

    Raises:
        InputError: unknown precision, no ranges, or a state of other inputs.
    """

    def __init__(
        self,
        source: FloatModel,
        ranges: Ranges | None,
        pairs: PhotoPairs,
        *,
        precision: str = "int8",
        options: dict[str, Any] | None = None,
        dataset: PairDataset | None = None,
        threads: int | None = None,
        state: Path | None = None,
    ) -> None:
        check_precision(precision)
        if ranges is None and precision != "fp16":
            raise InputError(
                f"{precision} needs ranges of the activations: give --images, --pairs, --data or --from-ranges"
            )
        self.source, self.ranges, self.pairs, self.precision = source, ranges, pairs, precision
        self.options, self.dataset, self.threads, self.state = options or {}, dataset, threads, state
        self.candidates = (
            _half_modules(source.model) if precision == "fp16" else list(quantizable_modules(source.model))
        )
        self.nodes = _node_names(source.model, self.candidates)
        self._moments = measure_moments(source.model, source.metadata.preprocessing) if precision == "fp16" else None
        self._feeds: list[Feeds] | None = None
        self._reference: tuple[Any, float | None] | None = None
        self._known: dict[tuple[str, ...], Effect] = {}
        self._rounded: RoundedWeights = {}
        self.fingerprint = self._fingerprint()
        if state is not None and state.exists():
            self._load_state(state)

    def build(self, keep: Collection[str]) -> onnx.ModelProto:
        """The model with all candidates but ``keep`` in lower precision; the float model where all are kept."""
        if set(self.candidates) <= set(keep):
            return self.source.model
        if self.precision == "fp16":
            return to_fp16(self.source.model, sorted(keep), self._moments)
        assert self.ranges is not None
        return quantize(
            self.source.model,
            self.ranges,
            precision=self.precision,
            keep=sorted(keep),
            rounded=self._rounded,
            **self.options,
        )

    def measure(self, keep: Iterable[str]) -> Effect:
        """Compare the variant that keeps some modules with the float model, or recall the comparison."""
        key = tuple(sorted(set(keep)))
        if key not in self._known:
            self._known[key] = self._measure(key)
            self._save_state()
        return self._known[key]

    @property
    def measured(self) -> dict[tuple[str, ...], Effect]:
        """All variants measured so far, by the kept modules."""
        return dict(self._known)

    @functools.cached_property
    def costs(self) -> dict[str, float]:
        """Work of each candidate."""
        return count_work(self.source.model, self.feeds()[0], self.nodes, self.threads)

    @functools.cached_property
    def sizes(self) -> dict[str, int]:
        """Weights of each candidate."""
        graph, found = Graph(self.source.model), dict.fromkeys(self.candidates, 0)
        for node in graph.quantizable():
            weight = graph.constant(node.input[1])
            if module_of(node) in found and weight is not None:
                found[module_of(node)] = weight.size
        return found

    def open_session(self, keep: Collection[str]) -> ProbeSession:
        """Build the variant and load it, ready to run."""
        return ProbeSession(self.build(keep), threads=self.threads)

    def feeds(self) -> list[Feeds]:
        """Inputs of all pairs, read once."""
        if self._feeds is None:
            self._feeds = list(self.pairs.feeds(self.source.metadata.preprocessing, fixed_batch(self.source.model)))
        return self._feeds

    def _measure(self, key: tuple[str, ...]) -> Effect:
        expected, float_pck = self._float()
        if set(self.candidates) <= set(key):
            return Effect(0.0, 0.0, 0.0, None if self.dataset is None else 0.0)
        session = self.open_session(key)
        flow = self._run(session)
        distance = flow_distance(expected, flow)
        drop = None if float_pck is None else round(float_pck - self._pck(session), 6)
        return Effect(float(np.median(distance)), float(np.quantile(distance, 0.99)), float(distance.max()), drop)

    def _float(self) -> tuple[Any, float | None]:
        if self._reference is None:
            session = ProbeSession(self.source.model, threads=self.threads)
            self._reference = self._run(session), None if self.dataset is None else self._pck(session)
        return self._reference

    def _run(self, session: ProbeSession) -> Any:
        """Flows over all pairs."""
        return np.concatenate([session(item)["flow"] for item in self.feeds()])[: len(self.pairs)]

    def _pck(self, session: ProbeSession) -> float:
        from cats.evaluation.evaluate import evaluate

        matcher = SessionMatcher(session, self.source.metadata.preprocessing, fixed_batch(self.source.model))
        assert self.dataset is not None  # callers look
        return evaluate(matcher, self.dataset, ("corrected",), (ALPHA,)).pck(ALPHA)

    def _fingerprint(self) -> str:
        digest = hashlib.sha256(self.source.model.SerializeToString(deterministic=True))
        tensors = {name: item.to_dict() for name, item in self.ranges.tensors.items()} if self.ranges else {}
        named = {
            "precision": self.precision,
            "exact_sums": sums_are_exact(),
            "options": self.options,
            "data": self.dataset.description if self.dataset is not None else None,
            "root": str(self.dataset.root) if self.dataset is not None else None,
            "ranges": tensors,
            "balance": {k: v.tolist() for k, v in self.ranges.balance.items()} if self.ranges else {},
            "moments": sorted(self.ranges.moments) if self.ranges else [],
        }
        digest.update(json.dumps(named, sort_keys=True, default=str).encode())
        for content in self.pairs.contents():
            digest.update(content)
        return digest.hexdigest()

    def _load_state(self, path: Path) -> None:
        document = read_json(path, limit=_LARGEST_STATE)
        try:
            found = document["fingerprint"]
            known = {tuple(item.pop("keep")): _read_effect(item) for item in document["variants"]}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is not the state of a search: delete it or give another --state") from error
        if found != self.fingerprint:
            raise InputError(
                f"{path} is the state of a search with another model, ranges, options or pairs: "
                "delete it or give another --state"
            )
        self._known = known

    def _save_state(self) -> None:
        if self.state is None:
            return
        variants = [{"keep": list(key), **asdict(effect)} for key, effect in self._known.items()]
        write_text(
            self.state, json.dumps({"format": 1, "fingerprint": self.fingerprint, "variants": variants}, indent=1)
        )


def check_precision(precision: str) -> None:
    """Raise :class:`InputError` where there is no such precision."""
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r}: choose {', '.join(PRECISIONS)}")


def open_variants(
    source: FloatModel,
    photos: PhotoPairs | None,
    from_ranges: list[Path],
    *,
    precision: str,
    balance: bool,
    options: dict[str, Any],
    check: str | None,
    limit: int,
    threads: int | None,
    state: Path | None,
) -> Variants:
    """Variants on pairs that the ranges are not measured on, where there are enough (:meth:`.PhotoPairs.split`).

    Raises:
        InputError: there are no pairs to judge by.
    """
    dataset = open_dataset(check).select(limit=limit) if check is not None else None
    if photos is None:
        if check is None:
            raise InputError("--from-ranges leaves no pairs to judge by: give --check KIND:DIR too")
        judged_on, measured_on = photos_from_data(check).spread(VALIDATION), None
    else:
        measured_on, judged_on = photos.spread(limit).split(VALIDATION)
    ranges = None
    if measured_on is None and from_ranges:
        ranges = Ranges.load_all(from_ranges)
        check_ranges(source, ranges)
    elif measured_on is not None and precision != "fp16":
        ranges = measure_ranges(source, measured_on, balance=balance, threads=threads)
    return Variants(
        source,
        ranges,
        judged_on,
        precision=precision,
        options={} if precision == "fp16" else options,
        dataset=dataset,
        threads=threads,
        state=state,
    )


def count_work(
    model: onnx.ModelProto, feeds: Feeds, nodes: Mapping[str, Collection[str]], threads: int | None = None
) -> dict[str, float]:
    """Work of modules, in multiplications: those of their products, and what reading and writing values is worth.

    Counted, not timed, so that it is the same on every machine.

    Args:
        model: float32.
        feeds: inputs of one run.
        nodes: by module, its nodes.
        threads: CPU threads; None takes all.
    """
    graph = Graph(model)
    by_name = {node.name: node for node in model.graph.node}
    found = {module: [by_name[name] for name in names] for module, names in nodes.items()}
    wanted = {name for items in found.values() for node in items for name in (node.input[0], node.output[0])}
    wanted -= {value.name for value in model.graph.input} | set(graph.initializers)
    session = ProbeSession(model, outputs=sorted(wanted), threads=threads)
    sizes = {name: values.size for name, values in session(feeds).items()}

    def work(node: onnx.NodeProto) -> float:
        size = sizes.get(node.output[0], 0)
        weight = graph.constant(node.input[1]) if node.op_type in QUANTIZABLE else None
        each = 0 if weight is None else weight.size / weight.shape[0 if node.op_type == "Conv" else -1]
        return float(size * each + _MACS_PER_ELEMENT * (size + sizes.get(node.input[0], 0)))

    return {module: max(1.0, sum(map(work, items))) for module, items in found.items()}


def group_modules(candidates: Iterable[str], by: str = "module") -> dict[str, list[str]]:
    """Group modules by the name under which they are varied together.

    Args:
        candidates: modules in graph order.
        by: ``module``: each for itself; ``block``: siblings together where their parent has nothing but them.

    Raises:
        InputError: ``by`` is unknown.
    """
    if by not in ("module", "block"):
        raise InputError(f"grouping by {by!r}: choose module or block")
    names = list(candidates)
    found: dict[str, list[str]] = {}
    for name in names:
        parent = name.rpartition(".")[0]
        inside = [other for other in names if other.startswith(f"{parent}.")]
        whole = by == "block" and parent and all("." not in other[len(parent) + 1 :] for other in inside)
        found.setdefault(parent if whole else name, []).append(name)
    return found


def _half_modules(model: onnx.ModelProto) -> list[str]:
    """Modules without other modules inside that compute in float16 when the whole model is typed."""
    typed = to_fp16(model)
    halves = set(find_half_tensors(typed))
    nodes = [node for node in typed.graph.node if node.op_type != "Cast" and halves.intersection(node.output)]
    names = [name for name in dict.fromkeys(module_of(node) for node in nodes) if name]
    return [name for name in names if not any(other.startswith(f"{name}.") for other in names)]


def _node_names(model: onnx.ModelProto, candidates: Collection[str]) -> dict[str, list[str]]:
    known = quantizable_modules(model)
    found = {name: list(known.get(name, ())) for name in candidates}
    for node in model.graph.node:
        name = module_of(node)
        if name in found and name not in known:
            found[name].append(node.name)
    return found
