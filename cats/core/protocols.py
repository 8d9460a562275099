"""The seam between the rooms: what matches two images, and what a data set of pairs is.

Evaluation, training, export, calibration, labelling and benchmarks take these and know no class of another room.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from cats.core.images import ImageSource
from cats.core.metadata import Metadata

if TYPE_CHECKING:
    from pathlib import Path

Item = TypeVar("Item", covariant=True)


@runtime_checkable
class Correspondence(Protocol):
    """What is known of a matched pair, at least: :class:`cats.runtime.Match` knows more."""

    @property
    def flow(self) -> NDArray[np.float32]:
        """(2, G, G) in cells, channel 0 = x: where each cell of a lies in b, relative to itself."""
        ...


@runtime_checkable
class PairMatcher(Protocol):
    """What matches image a to image b (a -> b): a model file, a PyTorch model, a graph that is not yet a file."""

    def match(self, a: ImageSource, b: ImageSource) -> Correspondence:
        """Match one pair; raises :class:`cats.core.errors.InputError` for an image that cannot be read."""
        ...

    def match_many(
        self, pairs: Iterable[tuple[ImageSource, ImageSource]], *, batch_size: int = 1
    ) -> Iterator[Correspondence]:
        """Match a stream of pairs in order, ``batch_size`` of them in one run of the model."""
        ...


@runtime_checkable
class ModelMatcher(PairMatcher, Protocol):
    """A matcher that was loaded from a file which describes itself."""

    @property
    def metadata(self) -> Metadata:
        """The file's metadata."""
        ...


@dataclass(frozen=True)
class PairFlow:
    """A flow of which nothing more is known; a :class:`Correspondence`."""

    flow: NDArray[np.float32]


class OneByOne:
    """For matchers without batches of their own: :meth:`match_many` by :meth:`match`."""

    def match(self, a: ImageSource, b: ImageSource) -> PairFlow:
        """See :class:`PairMatcher`."""
        raise NotImplementedError

    def match_many(
        self, pairs: Iterable[tuple[ImageSource, ImageSource]], *, batch_size: int = 1
    ) -> Iterator[PairFlow]:
        """See :class:`PairMatcher`; ``batch_size`` has no effect."""
        return (self.match(a, b) for a, b in pairs)


@runtime_checkable
class PairSet(Protocol[Item]):
    """A data set of pairs: a sequence of items, annotated ones as ``PairSet[cats.data.samples.Sample]``, with the words
    that reports need."""

    @property
    def kind(self) -> str:
        """Kind of the data set, which decides the protocol of its PCK: ``willow``, ``spair``, ``pairs``, ..."""
        ...

    @property
    def root(self) -> Path:
        """Folder or file it was read from, for messages."""
        ...

    @property
    def split(self) -> str | None:
        """``train``, ``val`` or ``test``, where the data set has them."""
        ...

    @property
    def description(self) -> str:
        """One line for reports."""
        ...

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Item: ...
    def __iter__(self) -> Iterator[Item]: ...
