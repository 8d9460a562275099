"""Data sets: annotated pairs, folders of photos. Reading them needs no torch."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cats.core.errors import InputError

if TYPE_CHECKING:
    from cats.data.samples import PairDataset

KINDS: dict[str, str] = {
    "spair": "cats.data.spair:SPair",
    "pfpascal": "cats.data.proposal_flow:PFPascal",
    "willow": "cats.data.proposal_flow:PFWillow",
    "tss": "cats.data.tss:TSS",
    "pairs": "cats.data.pairs_csv:PairsCSV",
}
"""Name before the colon -> reader of pairs, imported when used and called with ``(path, split, **options)``."""


def parse_data(spec: str, kinds: tuple[str, ...] | None = None) -> tuple[str, Path]:
    """Split ``KIND:DIR`` (or ``KIND:FILE``).

    Args:
        spec: as given on a command line.
        kinds: names allowed here; default: the readers of pairs, :data:`KINDS`.

    Raises:
        InputError: no colon, or an unknown kind.
    """
    known = tuple(KINDS) if kinds is None else kinds
    kind, colon, path = spec.partition(":")
    if not colon or not path or kind not in known:
        raise InputError(f"{spec!r} is not KIND:DIR with KIND one of {', '.join(known)}, for example {known[0]}:DIR")
    return kind, Path(path)


def open_dataset(spec: str, split: str | None = None, **options: Any) -> PairDataset:
    """Open annotated pairs.

    Args:
        spec: ``KIND:DIR``, for example ``willow:PF-WILLOW`` or ``pairs:mine.csv``.
        split: ``train``, ``val`` or ``test`` where the data set has them; default: its test pairs.
        options: further arguments of the reader, for example ``layout="small"`` of ``spair``.

    Returns:
        A :class:`cats.data.samples.PairDataset`: a sequence of :class:`cats.data.samples.Sample`.

    Raises:
        InputError: unknown kind or split, or the folder lacks something: named, with where to get it.
    """
    kind, path = parse_data(spec)
    return find_reader(kind)(path, split, **options)


def find_reader(kind: str) -> type[PairDataset]:
    """The class that reads a kind of :data:`KINDS`, imported now."""
    module, _, name = KINDS[kind].partition(":")
    found: type[PairDataset] = getattr(importlib.import_module(module), name)
    return found
