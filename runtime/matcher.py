"""Matching images with a model file: :class:`Matcher`."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, overload
from urllib.parse import quote

from numpy.typing import ArrayLike

from cats.assets import find_model
from cats.core.ahead import map_ahead
from cats.core.errors import CatsError, InputError, ModelFileError
from cats.core.hub import HubName, parse_hub_name
from cats.core.images import MAX_PIXELS, ImageSource
from cats.core.onnx_file import PROBABILITIES
from cats.runtime.backends import open_backend
from cats.runtime.backends.base import Backend
from cats.runtime.batches import chunks
from cats.runtime.device import match_on_device, wants_device
from cats.runtime.document import model_document
from cats.runtime.features import Features, check_weights
from cats.runtime.interface import CONFIDENCE, FLOW, check_pair_model
from cats.runtime.prepared import Prepared, RecentImages, milliseconds_since, prepare_image
from cats.runtime.result import Match, confidence_mapping
from cats.runtime.run_pairs import run_pairs
from cats.runtime.same_kind import LIKENESS
from cats.runtime.second_look import look_again
from cats.runtime.split import encode_tensors, find_split, open_split

_RECENT_IMAGES = 32  # of 0.8 MB each

Source = ImageSource | Features
Pair = tuple[Source, Source]


class Matcher:
    """A loaded model that matches image a to image b.

    All settings of the model (input size, normalisation, grid) come from the metadata in the file. One matcher may be
    used from several threads at once. It is a context manager; :meth:`close` releases device memory. It is pickled as
    its path and options, and opened again where it is unpickled; a process that is forked cannot use it.

    Args:
        model: ONNX file of ``cats-export``, or engine of ``cats-build`` with its sidecar beside it, for pairs or
            end-to-end; the name of a shipped model, ``cats-tiny``; or ``hf://user/repo[@revision][/file]``, see
            :mod:`cats.core.hub`. Of a split model either of ``X.encoder.onnx`` and ``X.matcher.onnx``, or ``X``; only
            that can :meth:`encode`.
        backend: ``onnxruntime``, ``tensorrt``, ...; ``None`` chooses by the file.
        max_pixels: larger images are refused, see :func:`cats.core.images.read_image`.
        calibrated: True gives confidences as fitted probabilities, see :attr:`Match.calibrated_confidence`. By default
            they are the model's own, and pictures and documents show the probability too where the file has one; False
            leaves it out of these.
        options: settings of the backend, see its class. ONNX Runtime: ``provider``, ``device``, ``threads``,
            ``cache_dir``; OpenVINO: ``precision``, ``hint``, ``threads``, ``device``.

    Attributes:
        backend: the loaded backend; ``backend.describe()`` says what was chosen and why.
        encoder: the loaded encoder of a split model, whose matcher is ``backend``; else None.
        metadata: :class:`cats.core.metadata.Metadata` of the file.
        load_ms: time that loading took, in milliseconds.

    Raises:
        ModelFileError: missing, of another kind, without metadata, newer than this toolkit, or with other inputs and
            outputs than its metadata says.
        BackendError: the backend, provider or device is not here. So do all methods once the matcher is closed.
        InputError: ``calibrated`` with a model whose confidence was not fitted.
    """

    def __init__(
        self,
        model: str | Path,
        backend: str | None = None,
        *,
        max_pixels: int = MAX_PIXELS,
        calibrated: bool | None = None,
        **options: Any,
    ) -> None:
        start = time.perf_counter()
        self.path = Path(model)
        self.max_pixels, self.calibrated = max_pixels, calibrated
        self.encoder: Backend | None = None
        self._opened_with = (backend, options)
        if parse_hub_name(model) is not None:
            model = self.path = find_model(model)
        split = find_split(model)
        if split is not None:
            self.path = split[1]
            self.encoder, self.backend = open_split(split, backend, **options)
        else:
            self.path = find_model(model)
            self.backend = open_backend(self.path, backend, **options)
        self.metadata = self.backend.metadata
        try:
            if self.encoder is None:
                check_pair_model(self.backend)
            if calibrated:
                confidence_mapping(self.metadata.calibration)
        except CatsError:
            self.close()
            raise
        self._document = model_document(self)
        self.load_ms = milliseconds_since(start)

    @classmethod
    def from_pretrained(
        cls, repo: str, *, revision: str | None = None, file: str | None = None, **options: Any
    ) -> Matcher:
        """A model of a hub, fetched into its cache where it is not there: ``Matcher("hf://user/repo")`` in parts.

        Args:
            repo: ``user/repo``.
            revision: branch, tag or commit; None takes ``main``.
            file: path in the repository; None takes the only ONNX file there.
            options: as of :class:`Matcher`.

        Raises:
            InputError: no such repository, revision or file, several files, or no way to the hub.
            BackendError: ``huggingface_hub`` (extra ``hub``) is not installed. Else as :class:`Matcher`.
        """
        name = HubName(repo.removeprefix("hf://"), quote(revision, safe="") if revision else None, file)
        return cls(str(name), **options)

    def match(
        self,
        a: Source,
        b: Source,
        *,
        looks: int = 1,
        region_a: ArrayLike | None = None,
        forward_backward: bool = False,
        order: str = "rgb",
        stream: Any = None,
    ) -> Match:
        """Match one pair of images.

        Args:
            a, b: paths, Pillow images, uint8 arrays or tensors of any size, see :func:`cats.core.images.read_image`,
                or, with a split model, :class:`Features`. Or model inputs on the GPU: then the result is a
                :class:`cats.runtime.device.DeviceMatch`, still being computed where the file is an engine.
            looks: 2 matches again, with both photos cut to the object: finer and more often right, at twice the cost.
            region_a: of the object in a, for the second look: x_min, y_min, x_max, y_max in pixels. None takes the
                confident cells of the first look.
            forward_backward: also match b -> a, for :meth:`Match.forward_backward_error`; costs a second run.
            order: of the channels of arrays: ``rgb``, or ``bgr`` for those of OpenCV.
            stream: for inputs on the GPU, the caller's stream.

        Raises:
            InputError: an image cannot be read; for a second look also if it is given as model input or as features
                without a file, or if the region is none of a.
            BackendError: the device failed.
        """
        if looks not in (1, 2) or (region_a is not None and looks == 1):
            raise InputError(f"looks {looks}: 1, or 2 to look again at the object, for which region_a may be given")
        first = self.match_batch([(a, b)], forward_backward=forward_backward, order=order, stream=stream)[0]
        if looks == 1:
            return first
        if not isinstance(first, Match):
            raise InputError("a second look cuts the photos: give images, not model inputs on the GPU")
        return look_again(self, first, region_a)

    def match_batch(
        self, pairs: Sequence[Pair], *, forward_backward: bool = False, order: str = "rgb", stream: Any = None
    ) -> list[Match]:
        """Match pairs in one run of the model, or a few where the file's batch is smaller; see :meth:`match`.

        Pairs of inputs on the GPU are one run each: what is to be one run there lies in one array.
        """
        if self.encoder is None and wants_device(pairs, stream):
            if self.metadata.kind == "end-to-end":
                raise InputError(
                    f"{self.path} takes the pixels of images on the host; on the GPU use the form for pairs"
                )
            device: list[Any] = [
                match_on_device(self.backend, *pair, forward_backward=forward_backward, stream=stream) for pair in pairs
            ]
            return device
        return self._infer([(self._prepare(a, order), self._prepare(b, order)) for a, b in pairs], forward_backward)

    def encode(self, image: ImageSource, *, order: str = "rgb") -> Features:
        """What the encoder of a split model says about one image, to be matched any number of times.

        Raises:
            ModelFileError: the model is not split.
            InputError: the image cannot be read.
        """
        return self.encode_batch([image], order=order)[0]

    def encode_batch(self, images: Sequence[ImageSource], *, order: str = "rgb") -> list[Features]:
        """Encode images in one run of the encoder, or a few where the file's batch is smaller; see :meth:`encode`."""
        if self.encoder is None:
            raise ModelFileError(f"{self.path} is one model for pairs: export it with cats-export --split to encode")
        prepared = [self._prepare(image, order) for image in images]
        arrays = encode_tensors(self.encoder, [item.tensor for item in prepared if item.tensor is not None])
        return [
            Features(
                found, item.size, self.metadata.weights_sha256, str(image) if isinstance(image, (str, Path)) else None
            )
            for image, item, found in zip(images, prepared, arrays, strict=True)
        ]

    def match_gallery(
        self,
        a: Source,
        gallery: Sequence[Source],
        *,
        batch_size: int | None = None,
        forward_backward: bool = False,
        order: str = "rgb",
    ) -> list[Match]:
        """Match one image against many: with a split model, ``a`` is encoded once and features cost no encoding.

        Args:
            gallery: images or :class:`Features`.
            batch_size: pairs of one run of the model, which bounds the memory; None takes 8 on a GPU and 1 on a CPU,
                where larger ones are slower.

        Returns:
            One match a -> b for each of the gallery, in its order.
        """
        if batch_size is None:
            batch_size = self.backend.gallery_batch
        if batch_size < 1:
            raise InputError(f"batch_size {batch_size} must be at least 1")
        first = self._prepare(a, order)
        if self.encoder is not None and first.tensor is not None:
            first = replace(first, features=encode_tensors(self.encoder, [first.tensor])[0])
        return [
            match
            for part in chunks(gallery, batch_size)
            for match in self._infer([(first, self._prepare(b, order)) for b in part], forward_backward)
        ]

    @overload
    def match_many(
        self,
        pairs: Iterable[Pair],
        *,
        batch_size: int = ...,
        workers: int = ...,
        streams: int = ...,
        forward_backward: bool = ...,
        order: str = ...,
        return_errors: Literal[False] = ...,
    ) -> Iterator[Match]: ...

    @overload
    def match_many(
        self,
        pairs: Iterable[Pair],
        *,
        batch_size: int = ...,
        workers: int = ...,
        streams: int = ...,
        forward_backward: bool = ...,
        order: str = ...,
        return_errors: Literal[True],
    ) -> Iterator[Match | CatsError]: ...

    def match_many(
        self,
        pairs: Iterable[Pair],
        *,
        batch_size: int = 1,
        workers: int = 2,
        streams: int = 1,
        forward_backward: bool = False,
        order: str = "rgb",
        return_errors: bool = False,
    ) -> Iterator[Match | CatsError]:
        """Match a stream of pairs in order, reading the next images while the model runs.

        On a CPU the shortest way through many pairs is a backend with ``threads=1`` and a stream for each core: then
        reading never waits for the model, nor the threads of one run for each other.

        Args:
            pairs: any iterable, consumed a few pairs ahead.
            batch_size: pairs of one run of the model.
            workers: threads that read and resize images; where there are several streams, each reads its own.
            streams: runs of the model side by side.
            return_errors: yield the :class:`InputError` of a pair that cannot be read and go on, instead of raising it.

        Yields:
            One :class:`Match` (or error) per pair.
        """
        if batch_size < 1 or workers < 1 or streams < 1:
            raise InputError(f"batch_size {batch_size}, workers {workers} and streams {streams} must be at least 1")
        recent = RecentImages(_RECENT_IMAGES)

        def prepare(pair: Pair) -> tuple[Prepared, Prepared] | InputError:
            try:
                a, b = (recent.get(source, lambda source: self._prepare(source, order)) for source in pair)
                return a, b
            except InputError as error:
                if not return_errors:
                    raise
                return error

        def infer(chunk: Sequence[tuple[Prepared, Prepared] | InputError]) -> list[Match | CatsError]:
            matches = iter(self._infer([item for item in chunk if not isinstance(item, CatsError)], forward_backward))
            return [item if isinstance(item, CatsError) else next(matches) for item in chunk]

        found: Iterator[list[Match | CatsError]]
        if streams == 1:
            prepared = map_ahead(prepare, pairs, workers, workers + 2 * batch_size)
            found = map(infer, chunks(prepared, batch_size))
        else:
            parts = chunks(pairs, batch_size)
            found = map_ahead(lambda part: infer([prepare(pair) for pair in part]), parts, streams, 2 * streams)
        yield from itertools.chain.from_iterable(found)

    def close(self) -> None:
        """Release the model when no run is under way; the matcher cannot be used afterwards."""
        self.backend.close()
        if self.encoder is not None:
            self.encoder.close()

    def __enter__(self) -> Matcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Matcher({str(self.path)!r}: {self.metadata.precision}, {self.backend.describe()})"

    def __reduce__(self) -> tuple[Any, ...]:
        backend, options = self._opened_with
        settings = {"max_pixels": self.max_pixels, "calibrated": self.calibrated, **options}
        return _open, (str(self.path.absolute()), backend, settings)

    def _prepare(self, source: Source, order: str = "rgb") -> Prepared:
        self.backend.lifetime.check()
        if isinstance(source, Features):
            return self._accept(source)
        return prepare_image(source, self.metadata, max_pixels=self.max_pixels, order=order)

    def _accept(self, features: Features) -> Prepared:
        """Features of an earlier :meth:`encode`, refused where they are not of this model."""
        name = features.source or "these features"
        if self.encoder is None:
            raise InputError(f"{self.path} is one model for pairs and takes no features: cats-export --split")
        check_weights(features, self.metadata.weights_sha256, name)
        expected = {spec.name: spec.shape[1:] for spec in self.encoder.outputs}
        if {key: value.shape for key, value in features.arrays.items()} != expected:
            raise InputError(f"{name}: not the arrays that the encoder of {self.path} gives; encode the image again")
        return Prepared(features.source, features.size, None, features=features.arrays)

    def _infer(self, pairs: Sequence[tuple[Prepared, Prepared]], forward_backward: bool) -> list[Match]:
        both_ways = [*pairs, *((b, a) for a, b in pairs)] if forward_backward else pairs
        start = time.perf_counter()
        results = run_pairs(self.encoder, self.backend, both_ways)
        elapsed = milliseconds_since(start)
        matches = [
            Match(
                flow=results[index][FLOW],
                confidence=results[index][CONFIDENCE],
                size_a=a.size,
                size_b=b.size,
                backward_flow=results[index + len(pairs)][FLOW] if forward_backward else None,
                times={
                    "read": a.read_ms + b.read_ms,
                    "preprocess": a.preprocess_ms + b.preprocess_ms,
                    "model": elapsed / len(pairs),
                },
                image_a=a.source,
                image_b=b.source,
                calibration=None if self.calibrated is False else self.metadata.calibration,
                model=self._document,
                probabilities=results[index].get(PROBABILITIES),
                likeness=float(results[index][LIKENESS]) if LIKENESS in results[index] else None,
            )
            for index, (a, b) in enumerate(pairs)
        ]
        if not self.calibrated:
            return matches
        return [replace(m, confidence=m.calibrated_confidence, raw_confidence=m.confidence) for m in matches]


def find_file(model: str | Path) -> Path:
    """The file that decides about the backend of what :class:`Matcher` is given: of a split model its encoder."""
    split = find_split(model)
    return find_model(model) if split is None else split[0]


def _open(model: str, backend: str | None, settings: dict[str, Any]) -> Matcher:
    return Matcher(model, backend, **settings)
