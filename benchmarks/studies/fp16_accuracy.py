"""How far float16 moves the flow and the PCK of models with real weights, on PF-WILLOW and the demo photos.

The exported encoder and matcher run in ONNX Runtime on the CPU, in float32 and typed in float16 with every rounding
made explicit (:mod:`cats.export.fp16.emulate`). Distances are in pixels of a 256 x 256 image, over all cells of all
pairs.

Usage: python -m cats.benchmarks.studies.fp16_accuracy [--model cats-tiny ...] [--output benchmarks/results/NAME.json]
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import typer

from cats.assets import asset
from cats.benchmarks.models import tamed_resnet101
from cats.benchmarks.record import RESULTS, SHARED, describe_run, write_record
from cats.checkpoints import load_checkpoint
from cats.core.console import execute, new_app, note, print_json
from cats.core.errors import InputError
from cats.core.images import ImageSource, preprocess, read_image
from cats.core.metadata import Preprocessing
from cats.core.protocols import OneByOne, PairFlow
from cats.data import open_dataset
from cats.data.samples import PairDataset, Sample
from cats.evaluation.evaluate import evaluate
from cats.export.exported import ExportedModel, Floats
from cats.export.forms import build_form
from cats.export.fp16.assign import to_fp16
from cats.export.fp16.input_moments import measure_moments
from cats.export.pairs import demo_pairs
from cats.export.verify import summarize_peaks
from cats.model import CATs
from cats.training.configs import find_config
from cats.training.starts import start_as_consensus


def consensus() -> CATs:
    """Where the training of cats-tiny starts."""
    model = CATs(find_config("tiny").model, backbone_weights="auto")
    start_as_consensus(model)
    return model.eval()


MODELS: dict[str, Callable[[], CATs]] = {
    "cats-tiny": lambda: load_checkpoint(asset("cats-tiny.pt")).model.eval(),
    "efficientnet-lite0, zero-started, temperature 0.02": lambda: CATs(
        replace(find_config("tiny").model, temperature=0.02), backbone_weights="auto", zero_start=True
    ).eval(),
    "efficientnet-lite0, started as consensus": consensus,
    "resnet101, weights of the goldens, bn3 scaled to 0.2": lambda: tamed_resnet101("formula"),
}

app = new_app()


def models_named(beginnings: list[str]) -> list[str]:
    """Names of :data:`MODELS` with one of these beginnings, all of them if none is given.

    Raises:
        InputError: no name has one.
    """
    chosen = [name for name in MODELS if not beginnings or name.startswith(tuple(beginnings))]
    if not chosen:
        raise InputError(f"no model begins with {', '.join(beginnings)}: there are {', '.join(MODELS)}")
    return chosen


class EveryNth(PairDataset):
    """Every n-th pair of a data set."""

    def __init__(self, dataset: PairDataset, step: int) -> None:
        super().__init__(dataset.root, dataset.split, dataset.description)
        self.kind = dataset.kind
        self._dataset, self._chosen = dataset, range(0, len(dataset), step)

    def __len__(self) -> int:
        return len(self._chosen)

    def category_of(self, index: int) -> str | None:
        """As of the data set's own pair."""
        return self._dataset.category_of(self._chosen[index])

    def __getitem__(self, index: int) -> Sample:
        return self._dataset[self._chosen[index]]


class SplitMatcher(OneByOne):
    """Encoder and matcher that encode each image once; keeps the flows of all pairs, in order."""

    def __init__(self, models: Mapping[str, onnx.ModelProto], preprocessing: Preprocessing) -> None:
        self.exported = ExportedModel(models, preprocessing, None)
        self.preprocessing = preprocessing
        self.encoded: dict[bytes, dict[str, Floats]] = {}
        self.flows: list[Floats] = []

    def encode(self, source: ImageSource) -> dict[str, Floats]:
        """Features of an image; those of equal images are computed once."""
        image = preprocess(read_image(source), self.preprocessing)
        key = hashlib.sha256(image.tobytes()).digest()
        if key not in self.encoded:
            self.encoded[key] = self.exported.sessions["encoder"]({"image": image[None]})
        return self.encoded[key]

    def match(self, a: ImageSource, b: ImageSource) -> PairFlow:
        """Flow (2, G, G) in cells, a -> b."""
        sides = {"a": self.encode(a), "b": self.encode(b)}
        feeds = {f"{name}_{side}": value for side, values in sides.items() for name, value in values.items()}
        self.flows.append(self.exported.sessions["matcher"](feeds)["flow"][0])
        return PairFlow(self.flows[-1])


def pixels(flows: list[Floats], expected: list[Floats]) -> dict[str, float]:
    """Median, 99th percentile and largest difference."""
    cell = 256 / flows[0].shape[-1]
    distance = np.linalg.norm(np.stack(flows).astype(np.float64) - np.stack(expected), axis=1) * cell
    parts = (np.median(distance), np.quantile(distance, 0.99), distance.max())
    return dict(zip(("median_px", "p99_px", "max_px"), (round(float(part), 4) for part in parts), strict=True))


def accuracy(model: CATs, data: str, every: int) -> dict[str, Any]:
    """Figures of one model."""
    built = build_form(model, "split")
    preprocessing = model.config.preprocessing
    typed = {kind: to_fp16(file, moments=measure_moments(file, preprocessing)) for kind, file in built.items()}
    matchers = {k: SplitMatcher(m, preprocessing) for k, m in (("fp32", built), ("fp16", typed))}
    found: dict[str, Any] = {}
    images = list(demo_pairs().images())
    for matcher in matchers.values():
        for a, b in images:
            matcher.match(a, b)
    found["demo photos"] = pixels(*(matchers[k].flows for k in ("fp16", "fp32")))
    dataset, scores = EveryNth(open_dataset(data), every), {}
    for name, matcher in matchers.items():
        matcher.flows.clear()
        scores[name] = evaluate(matcher, dataset, ("corrected",), (0.1,)).pck(0.1)
    found[data.partition(":")[0]] = {
        **pixels(*(matchers[k].flows for k in ("fp16", "fp32"))),
        "pairs": len(dataset),
        **{f"pck@0.1 {name}": round(score, 3) for name, score in scores.items()},
        "drift": round(scores["fp16"] - scores["fp32"], 3),
    }
    found["largest float16 value"] = summarize_peaks(matchers["fp16"].exported.peaks())
    return found


@app.command()
def main_command(
    data: Annotated[str, typer.Option(help="Annotated pairs, KIND:DIR.")] = f"willow:{SHARED / 'data' / 'PF-WILLOW'}",
    model: Annotated[list[str] | None, typer.Option(help="Beginning of a model's name. Default: all.")] = None,
    every: Annotated[int, typer.Option(help="Take every n-th pair of the data.", min=1)] = 1,
    output: Annotated[Path | None, typer.Option(help="Default: benchmarks/results/fp16-accuracy-DATE.json.")] = None,
) -> None:
    """Measure and write a dated results file; models that it has already are kept."""
    chosen = models_named(model or [])
    today = datetime.date.today().isoformat()
    path = output or RESULTS / f"fp16-accuracy-{today}.json"
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))["models"] if path.is_file() else {}
    for name in chosen:
        note(name)
        found[name] = accuracy(MODELS[name](), data, every)
        note(f"  {found[name]}")
        document = {
            **describe_run("fp16_accuracy", ["torch", "onnx", "onnxruntime"]),
            "frame": [256, 256],
            "protocol": "corrected",
            "models": found,
        }
        write_record(path, document)
    print_json(found)


def main() -> None:
    """Entry point."""
    execute(app)


if __name__ == "__main__":
    main()
