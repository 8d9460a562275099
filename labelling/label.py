"""Labels of a few photos carried to many others: :func:`label_photos`.

For each photo: a first look at all of it finds the object by each reference's points; a second look, cut to the object
in both photos, finds the points. ``consensus.py`` says how the references' votes become one place, ``probability.py``
how likely it is right.
"""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from cats.assets import asset
from cats.core.ahead import map_ahead
from cats.core.errors import InputError
from cats.core.geometry import Floats, Size
from cats.core.images import read_image
from cats.labelling.annotations import HIDDEN, NOT_LABELLED, VISIBLE, Annotation, Annotations, Box, Mask
from cats.labelling.draw import draw_annotation
from cats.labelling.outlines import carry_box, carry_mask, carry_polygons
from cats.labelling.passes import Finding, look_for
from cats.labelling.probability import point_probability, same_kind_probability
from cats.labelling.references import LookStore, References, collect_references, descriptor, look_at
from cats.labelling.through import Through, count_neighbours
from cats.runtime import Matcher
from cats.runtime.backends import choose_backend
from cats.runtime.hardware import physical_cores, usable_cpus
from cats.runtime.split import find_split

MODEL = "cats-tiny.encoder.onnx"
"""The shipped split model, of which labelling encodes each photo once."""

MAX_REFERENCES = 9
SAME_KIND = 0.5
"""Below this probability a photo does not show the references' kind of object."""

_CATEGORIES_TRIED = 3

Photo = Path | str | tuple[Path | str, str | None]
_Result = TypeVar("_Result")


@dataclass(frozen=True, eq=False)
class LabelledPhoto:
    """What :func:`label_photos` found in one photo.

    Attributes:
        path: of the photo.
        size: (width, height) in pixels, upright.
        category: of the references; for a photo that named none, of those that fit best. None where it is unreadable.
        points: (K, 2) float64 in pixels, NaN where no reference has the point; there also for improbable ones.
        probability: (K,) that the point lies within a tenth of the object's extent of where a person would put it.
        visibility: (K,) int64: 2; 1 where the references hide it; 0 where it is less probable than asked for.
        same_kind: probability that the photo shows the references' kind of object.
        box: x, y, width, height in pixels where the references have boxes.
        polygons, mask: the outline where the references have them.
        reference: photo of the reference that agrees best with the result.
        error: why the photo could not be labelled, or None.
    """

    path: Path
    size: Size
    category: str | None = None
    points: Floats = field(default_factory=lambda: np.zeros((0, 2)))
    probability: Floats = field(default_factory=lambda: np.zeros(0))
    visibility: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    same_kind: float = 0.0
    box: Box | None = None
    polygons: tuple[Floats, ...] = ()
    mask: Mask | None = None
    reference: Path | None = None
    error: str | None = None

    @property
    def found(self) -> bool:
        """Whether it shows the references' kind of object at all."""
        return self.error is None and self.same_kind >= SAME_KIND

    def annotation(self) -> Annotation:
        """The result as an annotation; points outside the photo are not labelled.

        Raises:
            InputError: the photo was not labelled.
        """
        if self.category is None or self.error is not None:
            raise InputError(f"{self.path} was not labelled: {self.error}")
        return Annotation(
            self.category,
            self.points,
            self.visibility,
            self.box,
            self.polygons,
            self.mask,
            probability=self.probability,
            score=self.same_kind,
        )

    def _repr_png_(self) -> bytes | None:
        """The photo with its labels, in a notebook; None where it was not labelled or is no longer there."""
        try:
            picture = draw_annotation(read_image(self.path), self.annotation())
        except InputError:
            return None
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        return buffer.getvalue()


def label_photos(
    references: Annotations,
    photos: Iterable[Photo],
    model: str | Path | Matcher | None = None,
    *,
    looks: int = 2,
    through: int | None = None,
    min_probability: float = 0.0,
    max_references: int = MAX_REFERENCES,
    streams: int | None = None,
    on_photo: Callable[[], None] | None = None,
    memory: Memory | None = None,
) -> Iterator[LabelledPhoto]:
    """Carry the labels of a few photos to others.

    Args:
        references: labelled photos; every object in them is a reference of its category.
        photos: files, or (file, category) where the category is known.
        model: file of a model as :class:`cats.runtime.Matcher` takes it, or a matcher; None takes ``cats-tiny``. With
            a split model every photo is encoded once, and the references are chosen by what they look like.
        looks: 1 matches whole photos; 2 again, cut to the object; further looks cut anew.
        through: so many other photos of ``photos`` are references too once they are labelled, with half the weight.
            None: four where a category has one or two references, none where it has more. With any, nothing is yielded
            before all photos were looked at, and a photo's labels depend on the others.
        min_probability: points below are given visibility 0.
        max_references: the references that look most like a photo are matched to it, at most so many.
        streams: photos labelled side by side; None takes one for each core on a CPU.
        on_photo: called after each photo; where :func:`goes_through`, twice.
        memory: where :func:`goes_through`: what a run that was broken off has found, and keeps what this one finds.

    Yields:
        One result for each photo, in order. A photo that cannot be read is a result with ``error``.

    Raises:
        InputError: references that label nothing or cannot be read, an unknown category, settings out of range.
        ModelFileError, BackendError: see :class:`cats.runtime.Matcher`.
    """
    settings = _Settings(looks, through, min_probability, max_references)
    wanted = [_named(photo) for photo in photos]
    known = [category.name for category in references.categories]
    unknown = next((name for _, name in wanted if name is not None and name not in known), None)
    if unknown is not None:
        raise InputError(f"no reference is of category {unknown!r}: there are {', '.join(known)}")
    if streams is not None and streams < 1:
        raise InputError(f"streams {streams} must be at least 1")
    with contextlib.ExitStack() as stack:
        if not isinstance(model, Matcher):
            model = stack.enter_context(open_for_labelling(model or asset(MODEL), streams))
        side_by_side = streams or (1 if model.backend.prefers_batches else _cores())
        labeller = Labeller(model, references, settings)
        yield from labeller.label(wanted, side_by_side, on_photo or (lambda: None), memory)


def goes_through(references: Annotations, through: int | None) -> bool:
    """Whether photos of any category are labelled through one another, see :func:`label_photos`."""
    counts = Counter(annotation.category for _, annotation in references.objects())
    return any(count_neighbours(count, through) for count in counts.values())


class Memory(Protocol):
    """What was found about photos before; :class:`cats.labelling.journal.Journal` is one."""

    def get(self, photo: Path, category: str | None) -> LabelledPhoto | None:
        """The result for a photo."""

    def get_finding(self, photo: Path, category: str | None, references: dict[str, References]) -> Finding | None:
        """What the references say about a photo, before the others help."""

    def add_finding(self, found: Finding, category: str | None) -> None:
        """Keep that."""


def open_for_labelling(
    model: str | Path, streams: int | None = None, backend: str | None = None, **options: Any
) -> Matcher:
    """A matcher whose streams share the cores: on CPUs one thread each is the shortest way through many photos.

    Args:
        model, backend, options: see :class:`cats.runtime.Matcher`; ``threads`` among them is kept.
        streams: photos labelled side by side; None is one for each core.
    """
    name = choose_backend((find_split(model) or (model,))[0], backend)
    if name in ("onnxruntime", "openvino") and "threads" not in options:
        options["threads"] = max(1, _cores() // (streams or _cores()))
        if name == "openvino":
            options.update(threads=_cores(), hint=options.get("hint", "throughput"))  # it shares them out itself
    return Matcher(model, backend, **options)


def open_labeller(
    references: Annotations, matcher: Matcher, *, looks: int = 2, max_references: int = MAX_REFERENCES
) -> Labeller:
    """A labeller for photos that come one at a time: it keeps what it knows of the references.

    ``labeller.finish(labeller.find(path, category))`` labels a photo; several threads may do so at once.

    Args:
        references, looks, max_references: as of :func:`label_photos`.
        matcher: stays the caller's.
    """
    return Labeller(matcher, references, _Settings(looks, 0, 0.0, max_references))


@dataclass(frozen=True)
class _Settings:
    looks: int
    through: int | None
    min_probability: float
    max_references: int

    def __post_init__(self) -> None:
        if self.looks < 1 or (self.through or 0) < 0 or self.max_references < 1 or not 0 <= self.min_probability <= 1:
            raise InputError(
                f"looks {self.looks} and max_references {self.max_references} must be at least 1, "
                f"through {self.through} at least 0, min_probability {self.min_probability} from 0 to 1"
            )


class Labeller:
    """Labels photos one at a time or several side by side; made by :func:`open_labeller`."""

    def __init__(self, matcher: Matcher, references: Annotations, settings: _Settings) -> None:
        self.matcher, self.settings, self.store = matcher, settings, LookStore(matcher)
        self.references = collect_references(self.store, references)
        self._goes_through = goes_through(references, settings.through)

    def label(
        self,
        wanted: Sequence[tuple[Path, str | None]],
        streams: int,
        on_photo: Callable[[], None],
        memory: Memory | None = None,
    ) -> Iterator[LabelledPhoto]:
        """Results in order, ``streams`` of them in work at once."""
        if self._goes_through:
            yield from self._label_through(wanted, streams, on_photo, memory)
            return
        for result in map_ahead(lambda item: _or_error(item, lambda: self.finish(self.find(*item))), wanted, streams):
            on_photo()
            yield result

    def _label_through(
        self,
        wanted: Sequence[tuple[Path, str | None]],
        streams: int,
        on_photo: Callable[[], None],
        memory: Memory | None,
    ) -> Iterator[LabelledPhoto]:
        """Every photo by the references first, then with the help of the others."""

        def find(item: tuple[Path, str | None]) -> Finding | LabelledPhoto:
            known = memory.get_finding(*item, self.references) if memory is not None else None
            return known if known is not None else _or_error(item, lambda: self.find(*item))

        findings = []
        for item, found in zip(wanted, map_ahead(find, wanted, streams), strict=True):
            on_photo()
            findings.append((item, found))
            if memory is not None and isinstance(found, Finding):
                memory.add_finding(found, item[1])
        through = Through(
            self.matcher, self.store, [f for _, f in findings if isinstance(f, Finding)], self.settings.through
        )

        def improve(entry: tuple[tuple[Path, str | None], Finding | LabelledPhoto]) -> LabelledPhoto:
            item, found = entry
            if isinstance(found, LabelledPhoto):  # with its error
                return found
            known = memory.get(*item) if memory is not None else None
            if known is not None:
                return known
            return _or_error(item, lambda: self.finish(through.improve(found), same_kind_probability(found)))

        for result in map_ahead(improve, findings, streams):
            on_photo()
            yield result

    def find(self, path: Path, category: str | None) -> Finding:
        """Look at one photo with the references of its category, or of the one that fits best."""
        image = read_image(path, max_pixels=self.matcher.max_pixels)
        whole = look_at(self.matcher, image)
        kind = descriptor(whole)
        names = [category] if category is not None else self._likely(kind)
        findings = [
            look_for(
                self.matcher,
                self.store,
                path,
                image,
                whole,
                self.references[name],
                self.references[name].nearest(kind, self.settings.max_references),
                self.settings.looks,
            )
            for name in names
            if name in self.references
        ]
        if not findings:
            raise InputError(f"{path}: the references of category {category} label nothing")
        return max(findings, key=lambda found: same_kind_probability(found))

    def finish(self, found: Finding, same_kind: float | None = None) -> LabelledPhoto:
        """Probabilities, visibility, box and outline of what was found.

        Args:
            same_kind: its probability by the references alone, where other photos have helped: it is fitted on those.
        """
        count = found.keypoints
        probability = point_probability(found)[:count]
        points = found.places[:count]
        return LabelledPhoto(
            found.path,
            found.size,
            found.references.category.name,
            points,
            probability,
            self._visibility(found, points, probability),
            same_kind_probability(found) if same_kind is None else same_kind,
            carry_box(found),
            carry_polygons(found),
            carry_mask(found),
            found.best().reference.path,
        )

    def _visibility(self, found: Finding, points: Floats, probability: Floats) -> NDArray[np.int64]:
        weights = found.last_weights[:, : len(points)]
        hidden = np.stack([item.reference.annotation.visibility == HIDDEN for item in found.carried])
        mostly_hidden = (weights * hidden).sum(axis=0) > 0.5 * weights.sum(axis=0)
        limit = np.asarray(found.size) - 0.5
        inside = np.isfinite(points).all(axis=1) & (points >= -0.5).all(axis=1) & (points <= limit).all(axis=1)
        kept = inside & (probability >= self.settings.min_probability)
        return np.where(kept, np.where(mostly_hidden, HIDDEN, VISIBLE), NOT_LABELLED)

    def _likely(self, kind: Floats | None) -> list[str]:
        """Categories worth a try: those with the references that look most like the photo."""
        if kind is None or len(self.references) <= 1:
            return list(self.references)
        likeness = {name: found.likeness(kind) for name, found in self.references.items()}
        return sorted(likeness, key=lambda name: -likeness[name])[:_CATEGORIES_TRIED]


def _or_error(item: tuple[Path, str | None], work: Callable[[], _Result]) -> _Result | LabelledPhoto:
    """What ``work`` gives for a photo, or a result that says why it cannot."""
    try:
        return work()
    except InputError as error:
        return LabelledPhoto(item[0], (0, 0), item[1], error=str(error))


def _named(photo: Photo) -> tuple[Path, str | None]:
    if isinstance(photo, tuple):
        return Path(photo[0]), photo[1]
    return Path(photo), None


def _cores() -> int:
    return min(physical_cores(), usable_cpus())
