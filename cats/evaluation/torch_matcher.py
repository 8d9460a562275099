"""A PyTorch model behind the interface of :class:`cats.runtime.Matcher`, for evaluation and verification."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from cats.checkpoints import load_checkpoint
from cats.core.errors import BackendError
from cats.core.images import ImageSource, preprocess, read_image
from cats.model import CATs
from cats.runtime.result import Match

Pair = tuple[ImageSource, ImageSource]


class TorchMatcher:
    """Matches images with a :class:`cats.model.CATs`, in float32 and evaluation mode; a is its target, b its source.

    Args:
        model: put into evaluation mode and moved to the device.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``; ``None``: where the model is.

    Raises:
        BackendError: the device is not here.
    """

    def __init__(self, model: CATs, device: str | None = None) -> None:
        try:
            self.model = model.eval() if device is None else model.eval().to(device)
        except (RuntimeError, AssertionError) as error:
            raise BackendError(f"PyTorch cannot use the device {device!r}: {str(error).splitlines()[0]}") from error
        self.device = next(model.parameters()).device

    @classmethod
    def load(
        cls, path: str | Path, device: str | None = None, *, hyperpixels: tuple[int, ...] | None = None
    ) -> TorchMatcher:
        """From a checkpoint; arguments and errors as of :func:`cats.checkpoints.load_checkpoint`."""
        return cls(load_checkpoint(path, hyperpixels=hyperpixels).model, device or "cpu")

    def match(self, a: ImageSource, b: ImageSource) -> Match:
        """Match one pair; raises :class:`InputError` for images that cannot be read."""
        return self.match_batch([(a, b)])[0]

    def match_batch(self, pairs: Sequence[Pair]) -> list[Match]:
        """Match pairs in one run of the model."""
        if not pairs:
            return []
        images = [(read_image(a), read_image(b)) for a, b in pairs]
        pre = self.model.config.preprocessing
        target, source = (
            torch.from_numpy(np.stack([preprocess(pair[side], pre) for pair in images])).to(self.device)
            for side in (0, 1)
        )
        with torch.inference_mode():
            flow, confidence = self.model.match(target, source)
        flows, confidences = flow.float().cpu().numpy(), confidence.float().cpu().numpy()
        return [
            Match(flows[k], confidences[k], a.size, b.size, image_a=pairs[k][0], image_b=pairs[k][1])
            for k, (a, b) in enumerate(images)
        ]

    def match_many(self, pairs: Iterable[Pair], *, batch_size: int = 1) -> Iterator[Match]:
        """Match a stream of pairs in order."""
        iterator = iter(pairs)
        while batch := list(islice(iterator, batch_size)):
            yield from self.match_batch(batch)
