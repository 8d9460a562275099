"""What an evaluation found: :class:`Evaluation`, its parts, and how pairs are summarised."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cats.core.files import write_text
from cats.core.pck import PairScore, Protocol, pck_by_group, pck_table

_LEVELS = {
    "viewpoint": ("easy", "medium", "hard"),
    "scale": ("easy", "medium", "hard"),
    "truncation": ("none", "a", "b", "both"),
    "occlusion": ("none", "a", "b", "both"),
}

Table = dict[float, float]
"""alpha -> percent."""


@dataclass(frozen=True)
class DenseScore:
    """Errors of one pair with dense ground truth.

    Attributes:
        epe: mean end-point error over the valid pixels of a, in original pixels of b.
        pck: alpha -> percentage of valid pixels within ``alpha * larger side of image b``; on TSS, 0.05 is its authors'
            threshold of 5 pixels in images of 100.
        pixels: number of valid pixels.
    """

    epe: float
    pck: Table
    pixels: int


@dataclass
class PairResult:
    """Scores of one pair: of its keypoints by the protocol's name, and of its dense flow."""

    name: str
    category: str | None
    difficulty: dict[str, int]
    scores: dict[str, PairScore] = field(default_factory=dict)
    dense: DenseScore | None = None


@dataclass(frozen=True)
class ProtocolResult:
    """PCK under one protocol, in percent.

    Attributes:
        pck: over all pairs.
        by_category: category -> table.
        by_difficulty: difficulty -> level -> table, where the data set has such flags.
        pairs, keypoints: how many were measured.
    """

    protocol: Protocol
    pck: Table
    by_category: dict[str, Table]
    by_difficulty: dict[str, dict[str, Table]]
    pairs: int
    keypoints: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "protocol": self.protocol.to_dict(),
            "pairs": self.pairs,
            "keypoints": self.keypoints,
            "pck": _keys(self.pck),
            "by_category": {name: _keys(values) for name, values in self.by_category.items()},
            "by_difficulty": {
                flag: {level: _keys(values) for level, values in levels.items()}
                for flag, levels in self.by_difficulty.items()
            },
        }


@dataclass(frozen=True)
class DenseResult:
    """Dense flow over all pairs that have a ground truth: means over pairs of :class:`DenseScore`, or, of random warps,
    over all visible cells."""

    epe: float
    pck: Table
    by_category: dict[str, tuple[float, Table]]
    pairs: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "pairs": self.pairs,
            "epe": self.epe,
            "pck": _keys(self.pck),
            "by_category": {name: {"epe": epe, "pck": _keys(p)} for name, (epe, p) in self.by_category.items()},
        }


@dataclass(frozen=True)
class Evaluation:
    """What :func:`cats.evaluation.evaluate.evaluate` measured.

    Attributes:
        data: description of the data set.
        protocols: name -> result; empty for data without keypoints.
        dense: for data with dense ground truth.
        pairs: one entry a pair, in the order of the data set.
        seconds: wall time.
    """

    data: dict[str, Any]
    alphas: tuple[float, ...]
    protocols: dict[str, ProtocolResult]
    dense: DenseResult | None
    pairs: list[PairResult]
    seconds: float

    def pck(self, alpha: float, protocol: str | None = None) -> float:
        """PCK over all pairs in percent; of the only or first protocol where none is named."""
        return self.protocols[protocol or next(iter(self.protocols))].pck[alpha]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, without the single pairs."""
        return {
            "data": self.data,
            "alphas": list(self.alphas),
            "protocols": {name: result.to_dict() for name, result in self.protocols.items()},
            "dense": self.dense.to_dict() if self.dense else None,
            "seconds": round(self.seconds, 3),
        }

    def write_pairs(self, path: str | Path) -> None:
        """One CSV line for each pair and protocol: name, category, keypoints, threshold, mean error, PCK at each alpha.

        Raises:
            InputError: the file cannot be written.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(
            [
                "pair",
                "category",
                "protocol",
                "count",
                "threshold",
                "error",
                *(f"pck@{alpha:g}" for alpha in self.alphas),
            ]
        )
        for pair in self.pairs:
            start = [pair.name, pair.category or ""]
            for name, score in pair.scores.items():
                if score.distances.size:
                    error = score.distances.mean()
                    rates = [score.pck(alpha) for alpha in self.alphas]
                    writer.writerow([*start, name, score.distances.size, score.threshold, error, *rates])
            if pair.dense is not None:
                writer.writerow([*start, "dense", pair.dense.pixels, "", pair.dense.epe, *pair.dense.pck.values()])
        write_text(path, text.getvalue())


def summarise_keypoints(
    pairs: Sequence[PairResult], protocols: Sequence[Protocol], alphas: Sequence[float]
) -> dict[str, ProtocolResult]:
    """One result for each protocol under which some pair was measured."""
    results = {}
    for protocol in protocols:
        scored = [(pair, pair.scores[protocol.name]) for pair in pairs if protocol.name in pair.scores]
        if not scored:
            continue
        categories: dict[str, list[PairScore]] = {}
        difficulties: dict[str, dict[str, list[PairScore]]] = {}
        for pair, score in scored:
            if pair.category is not None:
                categories.setdefault(pair.category, []).append(score)
            for flag, level in pair.difficulty.items():
                difficulties.setdefault(flag, {}).setdefault(level_name(flag, level), []).append(score)
        scores = [score for _, score in scored]
        results[protocol.name] = ProtocolResult(
            protocol,
            pck_table(scores, alphas, protocol.reduction),
            pck_by_group(dict(sorted(categories.items())), alphas, protocol.reduction),
            {
                flag: pck_by_group(_in_order(flag, levels), alphas, protocol.reduction)
                for flag, levels in difficulties.items()
            },
            len(scored),
            sum(score.distances.size for score in scores),
        )
    return results


def level_name(flag: str, level: int) -> str:
    """Name of a difficulty level, see :data:`cats.data.samples.DIFFICULTIES`."""
    names = _LEVELS.get(flag, ())
    return names[level] if 0 <= level < len(names) else str(level)


def _in_order(flag: str, levels: dict[str, list[PairScore]]) -> dict[str, list[PairScore]]:
    names = _LEVELS.get(flag, ())
    return {name: levels[name] for name in (*names, *sorted(set(levels) - set(names))) if name in levels}


def summarise_dense(pairs: Sequence[PairResult], alphas: Sequence[float]) -> DenseResult | None:
    """Means over the pairs with dense ground truth; ``None`` without such pairs."""
    groups: dict[str, list[DenseScore]] = {}
    for pair in pairs:
        if pair.dense is not None:
            groups.setdefault(pair.category or "", []).append(pair.dense)
    everything = [score for scores in groups.values() for score in scores]
    if not everything:
        return None
    epe, rates = _mean_dense(everything, alphas)
    by_category = {name: _mean_dense(scores, alphas) for name, scores in sorted(groups.items()) if name}
    return DenseResult(epe, rates, by_category, len(everything))


def _mean_dense(scores: Sequence[DenseScore], alphas: Sequence[float]) -> tuple[float, Table]:
    rates = {alpha: float(np.mean([score.pck[alpha] for score in scores])) for alpha in alphas}
    return float(np.mean([score.epe for score in scores])), rates


def _keys(values: Table) -> dict[str, float]:
    return {f"{alpha:g}": value for alpha, value in values.items()}
