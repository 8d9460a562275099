"""Matching images with a model file: :class:`Matcher`."""

from __future__ import annotations

import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cats.core.ahead import map_ahead
from cats.core.errors import BackendError, CatsError, InputError, ModelFileError
from cats.core.files import file_key
from cats.core.geometry import Size
from cats.core.images import MAX_PIXELS, ImageSource, preprocess, read_image
from cats.core.onnx_file import PROBABILITIES
from cats.runtime.backends import open_backend
from cats.runtime.backends.base import Array, Backend, TensorSpec
from cats.runtime.device import match_on_device, wants_device
from cats.runtime.features import Features, check_weights
from cats.runtime.result import Match, confidence_mapping
from cats.runtime.split import encode_tensors, find_split, fixed_batch, matcher_feeds, open_split

INPUTS = ("image_a", "image_b")
_RECENT_IMAGES = 32  # of 0.8 MB each
FLOW, CONFIDENCE = "flow", "confidence"

Source = ImageSource | Features
Pair = tuple[Source, Source]
_T = TypeVar("_T")


@dataclass(frozen=True)
class _Prepared:
    """One image, ready for the model: its input, or what the encoder already made of it."""

    source: ImageSource | None
    size: Size
    tensor: NDArray[np.float32] | None
    read_ms: float = 0.0
    preprocess_ms: float = 0.0
    features: dict[str, Array] | None = None


class Matcher:
    """A loaded model that matches image a to image b.

    All settings of the model (input size, normalisation, grid) come from the metadata in the file. One matcher may be
    used from several threads at once. It is a context manager; :meth:`close` releases device memory.

    Args:
        model: ONNX file of ``cats-export``, or engine of ``cats-build`` with its sidecar beside it. Of a split model
            either of ``X.encoder.onnx`` and ``X.matcher.onnx``, or ``X``; only that can :meth:`encode`.
        backend: ``onnxruntime``, ``tensorrt``, ...; ``None`` chooses by the file.
        max_pixels: larger images are refused, see :func:`cats.core.images.read_image`.
        calibrated: give confidences as fitted probabilities, see :attr:`Match.calibrated_confidence`.
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
        BackendError: the backend, provider or device is not here.
        InputError: ``calibrated`` with a model whose confidence was not fitted.
    """

    def __init__(
        self,
        model: str | Path,
        backend: str | None = None,
        *,
        max_pixels: int = MAX_PIXELS,
        calibrated: bool = False,
        **options: Any,
    ) -> None:
        start = time.perf_counter()
        self.path = Path(model)
        self.max_pixels, self.calibrated = max_pixels, calibrated
        self.encoder: Backend | None = None
        split = find_split(model)
        if split is not None:
            self.path = split[1]
            self.encoder, self.backend = open_split(split, backend, **options)
        else:
            self.backend = open_backend(model, backend, **options)
        self.metadata = self.backend.metadata
        try:
            self._batch = _check_interface(self)
            if calibrated:
                confidence_mapping(self.metadata.calibration)
        except CatsError:
            self.close()
            raise
        self.load_ms = _since(start)

    def match(self, a: Source, b: Source, *, forward_backward: bool = False, stream: Any = None) -> Match:
        """Match one pair of images.

        Args:
            a, b: paths, Pillow images or uint8 arrays of any size, see :func:`cats.core.images.read_image`, or, with
                a split model, :class:`Features`. Or model
                inputs on the GPU: then the result is a :class:`cats.runtime.device.DeviceMatch`, still being computed.
            forward_backward: also match b -> a, for :meth:`Match.forward_backward_error`; costs a second run.
            stream: for inputs on the GPU, the caller's stream.

        Raises:
            InputError: an image cannot be read.
            BackendError: the device failed.
        """
        if self.encoder is None and wants_device([(a, b)], stream):
            return match_on_device(self, a, b, forward_backward=forward_backward, stream=stream)
        return self._infer([(self._prepare(a), self._prepare(b))], forward_backward)[0]

    def match_batch(self, pairs: Sequence[Pair], *, forward_backward: bool = False, stream: Any = None) -> list[Match]:
        """Match pairs in one run of the model, or a few where the file's batch is smaller; see :meth:`match`.

        Pairs of inputs on the GPU are one run each: what is to be one run there lies in one array.
        """
        if self.encoder is None and wants_device(pairs, stream):
            return [match_on_device(self, *pair, forward_backward=forward_backward, stream=stream) for pair in pairs]
        return self._infer([(self._prepare(a), self._prepare(b)) for a, b in pairs], forward_backward)

    def encode(self, image: ImageSource) -> Features:
        """What the encoder of a split model says about one image, to be matched any number of times.

        Raises:
            ModelFileError: the model is not split.
            InputError: the image cannot be read.
        """
        return self.encode_batch([image])[0]

    def encode_batch(self, images: Sequence[ImageSource]) -> list[Features]:
        """Encode images in one run of the encoder, or a few where the file's batch is smaller; see :meth:`encode`."""
        if self.encoder is None:
            raise ModelFileError(f"{self.path} is one model for pairs: export it with cats-export --split to encode")
        prepared = [self._prepare(image) for image in images]
        arrays = encode_tensors(self.encoder, [item.tensor for item in prepared if item.tensor is not None])
        return [
            Features(
                found, item.size, self.metadata.weights_sha256, str(image) if isinstance(image, (str, Path)) else None
            )
            for image, item, found in zip(images, prepared, arrays, strict=True)
        ]

    def match_gallery(
        self, a: Source, gallery: Sequence[Source], *, batch_size: int | None = None, forward_backward: bool = False
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
        first = self._prepare(a)
        if self.encoder is not None and first.tensor is not None:
            first = replace(first, features=encode_tensors(self.encoder, [first.tensor])[0])
        return [
            match
            for part in _chunks(gallery, batch_size)
            for match in self._infer([(first, self._prepare(b)) for b in part], forward_backward)
        ]

    def match_many(
        self,
        pairs: Iterable[Pair],
        *,
        batch_size: int = 1,
        workers: int = 2,
        streams: int = 1,
        forward_backward: bool = False,
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

        recent = _Recent(_RECENT_IMAGES)

        def prepare(pair: Pair) -> tuple[_Prepared, _Prepared] | CatsError:
            try:
                return recent.get(pair[0], self._prepare), recent.get(pair[1], self._prepare)
            except CatsError as error:
                if not return_errors:
                    raise
                return error

        def infer(chunk: Sequence[tuple[_Prepared, _Prepared] | CatsError]) -> list[Match | CatsError]:
            matches = iter(self._infer([item for item in chunk if not isinstance(item, CatsError)], forward_backward))
            return [item if isinstance(item, CatsError) else next(matches) for item in chunk]

        found: Iterator[list[Match | CatsError]]
        if streams == 1:
            prepared = map_ahead(prepare, pairs, workers, workers + 2 * batch_size)
            found = map(infer, _chunks(prepared, batch_size))
        else:
            chunks = _chunks(pairs, batch_size)
            found = map_ahead(lambda chunk: infer([prepare(pair) for pair in chunk]), chunks, streams, 2 * streams)
        yield from itertools.chain.from_iterable(found)

    def close(self) -> None:
        """Release the backend; the matcher cannot be used afterwards."""
        self.backend.close()
        if self.encoder is not None:
            self.encoder.close()

    def __enter__(self) -> Matcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _prepare(self, source: Source) -> _Prepared:
        if isinstance(source, Features):
            return self._accept(source)
        start = time.perf_counter()
        image = read_image(source, max_pixels=self.max_pixels)
        read_ms = _since(start)
        start = time.perf_counter()
        tensor = preprocess(image, self.metadata.preprocessing)
        return _Prepared(source, image.size, tensor, read_ms, _since(start))

    def _accept(self, features: Features) -> _Prepared:
        """Features of an earlier :meth:`encode`, refused where they are not of this model."""
        name = features.source or "these features"
        if self.encoder is None:
            raise InputError(f"{self.path} is one model for pairs and takes no features: cats-export --split")
        check_weights(features, self.metadata.weights_sha256, name)
        expected = {spec.name: spec.shape[1:] for spec in self.encoder.outputs}
        if {key: value.shape for key, value in features.arrays.items()} != expected:
            raise InputError(f"{name}: not the arrays that the encoder of {self.path} gives; encode the image again")
        return _Prepared(features.source, features.size, None, features=features.arrays)

    def _infer(self, pairs: Sequence[tuple[_Prepared, _Prepared]], forward_backward: bool) -> list[Match]:
        both_ways = [*pairs, *((b, a) for a, b in pairs)] if forward_backward else pairs
        flows, confidences, probabilities, elapsed = self._run(both_ways)
        matches = [
            Match(
                flow=flows[index],
                confidence=confidences[index],
                size_a=a.size,
                size_b=b.size,
                backward_flow=flows[index + len(pairs)] if forward_backward else None,
                times={
                    "read": a.read_ms + b.read_ms,
                    "preprocess": a.preprocess_ms + b.preprocess_ms,
                    "model": elapsed / len(pairs),
                },
                image_a=a.source,
                image_b=b.source,
                calibration=self.metadata.calibration,
                probabilities=probabilities[index] if probabilities else None,
            )
            for index, (a, b) in enumerate(pairs)
        ]
        if not self.calibrated:
            return matches
        return [replace(m, confidence=m.calibrated_confidence, raw_confidence=m.confidence) for m in matches]

    def _run(
        self, pairs: Sequence[tuple[_Prepared, _Prepared]]
    ) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]], list[NDArray[np.float32]], float]:
        """Flows, confidences, probabilities (none where the file does not give them) and milliseconds of prepared
        pairs, in runs that the file's batch size allows."""
        flows: list[NDArray[np.float32]] = []
        confidences: list[NDArray[np.float32]] = []
        probabilities: list[NDArray[np.float32]] = []
        start = time.perf_counter()
        step = self._batch or self.backend.max_batch or len(pairs) or 1
        encoded = self._encoded(pairs)
        for first in range(0, len(pairs), step):
            part = list(encoded[first : first + step])
            wanted = len(part)
            part += [part[-1]] * (max(self._batch or 1, self.backend.min_batch) - wanted)  # the file takes no less
            outputs = self.backend.run(self._feeds(part))
            flow, confidence = outputs[FLOW], outputs[CONFIDENCE]
            grid = self.metadata.grid
            if flow.shape != (len(part), 2, *grid) or confidence.shape != (len(part), *grid):
                raise ModelFileError(
                    f"{self.path} gave flow {flow.shape} and confidence {confidence.shape} for a batch of {len(part)}, "
                    f"not what its metadata says (grid {grid}): export the model again"
                )
            if not (np.isfinite(flow).all() and np.isfinite(confidence).all()):
                raise BackendError(
                    f"{self.path} gave values that are not numbers ({self.metadata.precision}, {self.backend.name}): "
                    "half precision overflows in this model; export it in fp32"
                )
            flows += list(flow[:wanted].astype(np.float32, copy=False))
            confidences += list(confidence[:wanted].astype(np.float32, copy=False))
            if PROBABILITIES in outputs:
                probabilities += list(outputs[PROBABILITIES][:wanted].astype(np.float32, copy=False))
        return flows, confidences, probabilities, _since(start)

    def _encoded(self, pairs: Sequence[tuple[_Prepared, _Prepared]]) -> list[tuple[dict[str, Array], ...]]:
        """Arrays of each pair: model inputs, or for a split model features, each image encoded once."""
        if self.encoder is None:
            return [tuple({"image": item.tensor} for item in pair if item.tensor is not None) for pair in pairs]
        fresh = {id(item): item for pair in pairs for item in pair if item.features is None}
        tensors = [item.tensor for item in fresh.values() if item.tensor is not None]
        found = dict(zip(fresh, encode_tensors(self.encoder, tensors), strict=True))
        return [tuple(found[id(item)] if item.features is None else item.features for item in pair) for pair in pairs]

    def _feeds(self, part: Sequence[tuple[dict[str, Array], ...]]) -> dict[str, Array]:
        """Batched inputs of the model; ``image_a`` of a pair file, ``features_0_a``, ... of a split one."""
        items = [matcher_feeds(a, b) for a, b in part]
        dtypes = {spec.name: spec.dtype for spec in self.backend.inputs}
        return {name: np.stack([item[name] for item in items]).astype(dtypes[name], copy=False) for name in items[0]}


class _Recent:
    """The images prepared last, since tables of pairs often name one photo in many rows; for several threads."""

    def __init__(self, size: int) -> None:
        self._size, self._lock = size, threading.Lock()
        self._items: OrderedDict[str, _Prepared] = OrderedDict()

    def get(self, source: Source, prepare: Callable[[Source], _Prepared]) -> _Prepared:
        """A prepared image; only files are kept. One from here took no time to read."""
        if not isinstance(source, (str, Path)):
            return prepare(source)
        key = file_key(source)
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
                return replace(self._items[key], read_ms=0.0, preprocess_ms=0.0)
        item = prepare(source)
        with self._lock:
            self._items[key] = item
            while len(self._items) > self._size:
                self._items.popitem(last=False)
        return item


def _check_interface(matcher: Matcher) -> int | None:
    """Compare a loaded model with the contract; returns its fixed batch size, None where the batch is dynamic."""
    path, metadata, backend = matcher.path, matcher.metadata, matcher.backend
    if matcher.encoder is not None:
        _check_tensor(path, "output", FLOW, backend.outputs, (2, *metadata.grid))
        _check_tensor(path, "output", CONFIDENCE, backend.outputs, metadata.grid)
        return fixed_batch(backend)
    if metadata.kind != "pair":
        raise ModelFileError(f"{path} is a model of kind {metadata.kind}, not one that matches a pair of images")
    rows, columns = metadata.grid
    if rows != columns:
        raise ModelFileError(f"{path} has a grid of {rows}x{columns}; only square grids are defined")
    width, height = metadata.preprocessing.size
    batches = {
        _check_tensor(path, "input", name, backend.inputs, (3, height, width), exact=np.dtype(np.float32))
        for name in INPUTS
    }
    if len(batches) > 1:
        raise ModelFileError(f"{path} takes different batch sizes for {' and '.join(INPUTS)}: export the model again")
    _check_tensor(path, "output", FLOW, backend.outputs, (2, rows, columns))
    _check_tensor(path, "output", CONFIDENCE, backend.outputs, (rows, columns))
    extra = {spec.name for spec in backend.inputs} - set(INPUTS)
    if extra:
        raise ModelFileError(f"{path} has further inputs {', '.join(sorted(extra))}: not a model of kind pair")
    return batches.pop()


def _check_tensor(
    path: Path,
    role: str,
    name: str,
    specs: Sequence[TensorSpec],
    shape: tuple[int, ...],
    exact: np.dtype[Any] | None = None,
) -> int | None:
    """Refuse a missing tensor, another shape behind the batch dimension, or another dtype; returns the batch size."""
    spec = next((spec for spec in specs if spec.name == name), None)
    if spec is None:
        names = ", ".join(spec.name for spec in specs) or "none"
        raise ModelFileError(f"{path} has no {role} {name} (it has {names}): not a CATs model for pairs of images")
    fits = len(spec.shape) == len(shape) + 1 and all(
        have is None or have == want for have, want in zip(spec.shape[1:], shape, strict=True)
    )
    if not fits:
        have = ", ".join("?" if size is None else str(size) for size in spec.shape)
        want = ", ".join(map(str, ("batch", *shape)))
        raise ModelFileError(
            f"{path}: {role} {name} has shape ({have}), its metadata says ({want}): export the model again"
        )
    if exact is not None and spec.dtype != exact:
        raise ModelFileError(f"{path}: {role} {name} is {spec.dtype}, expected {exact}: export the model again")
    return spec.shape[0]


def _chunks(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def _since(start: float) -> float:
    """Milliseconds since a ``perf_counter`` value."""
    return (time.perf_counter() - start) * 1000
