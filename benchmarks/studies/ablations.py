"""What each part of CATs brings, and COTR in the same setting: the paper's Tables 2 and 3 in a setting that runs here.

All rows train alike: frozen EfficientNet-Lite0 whose features of a pool of items are computed once, the same items in
the same order for one seed, random start, temperature 0.02, AdamW with warm-up and cosine. Two objectives: ``warps``
(end-point error on known warps of photos, which COTR can be trained on too) and ``categories`` (probabilistic warp
consistency on triplets, which needs distributions of matches and so leaves COTR out). PCK is measured on PF-WILLOW, of
which nothing is trained on.

Runs are recorded one by one in ``benchmarks/results/ablations.json``; one that is there already is not repeated, so
that the study can be interrupted. ``--times`` adds run time (interleaved), GFLOP and parameters; nothing else may run
beside it. ``--table`` writes ``ablations.md`` beside it.

Usage: python -m cats.benchmarks.studies.ablations [--objective warps] [--steps 300] [--seeds 0,1,2] [--rows full,cotr]
[--device cuda] (photos from $CATS_SHARED, default ../shared)
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cats.architectures import build_model
from cats.benchmarks.record import RESULTS, describe_run, timed, write_record
from cats.benchmarks.ship_tiny import DATA
from cats.benchmarks.statistics import interleave, ratio_interval
from cats.core.console import note
from cats.core.files import write_text
from cats.core.images import resize
from cats.core.pck import DEFAULT_ALPHAS, pck_table, preset, score_flow
from cats.data import open_dataset
from cats.data.folders import CategoryFolder, PhotoFolder
from cats.data.warps import CategoryTriplets, WarpPairs
from cats.model import CATs, CATsConfig
from cats.training.configs import TrainConfig
from cats.training.objectives import FlowObjective, WarpConsistencyObjective, normalise
from cats.training.optimization import learning_rate_factor, parameter_groups

RECORD, TABLE = RESULTS / "ablations.json", RESULTS / "ablations.md"
IDS = (11, 12, 15)
# Four heads, because 6 do not divide the 256 channels that are left without appearance; feed-forward layers as wide as
# the tokens, as in cats-tiny, because an update then takes half as long.
FULL = CATsConfig("tf_efficientnet_lite0", IDS, num_heads=4, mlp_ratio=1.0)
ROWS: dict[str, dict[str, Any]] = {
    "full": {},
    "no correlation": {"correlation": False},
    "no appearance": {"appearance": False},
    "no swapping": {"swapping": False},
    "single level": {"hyperpixels": (15,)},
    "no residual": {"residual": False},
    "cotr": {"architecture": "cotr", "hyperpixels": (15,), "projection_dim": 256, "num_heads": 8, "mlp_ratio": 4.0},
}
PAPER = {
    "full": "49.9 (frozen 42.4)",
    "no correlation": "37.3",
    "single level": "37.4 (frozen), 39.1 ms",
    "cotr": "22.1, 56.1 ms",
}
"""PCK@0.1 on SPair-71k as published, where the paper has such a row; another backbone, data and supervision."""

Batch = tuple[dict[str, list[Tensor]], dict[str, Tensor]]
"""Features of each image, one map per level, and the rest of a batch."""


class Pool:
    """Items of a training set with the features of their images, computed once.

    Args:
        dataset: endless, by index.
        images: keys of an item that are images.
        size: number of items.
        backbone: a model whose features these are.
    """

    def __init__(self, dataset: Any, images: tuple[str, ...], size: int, backbone: CATs):
        self.features: dict[str, list[list[Tensor]]] = {name: [] for name in images}
        self.rest: dict[str, list[Tensor]] = {"flow": [], "visible": []}
        for index in range(size):
            item = dataset[index]
            stacked = torch.from_numpy(np.stack([item[name] for name in images])).to(place_of(backbone))
            maps = [x.half() for x in encode(backbone, stacked)]
            for k, name in enumerate(images):
                self.features[name].append([x[k] for x in maps])
            for name, values in self.rest.items():
                values.append(torch.from_numpy(np.asarray(item[name])).to(place_of(backbone)))

    def batch(self, indices: list[int], levels: list[int]) -> Batch:
        """Items by index, with some of the levels, float32."""
        features = {
            name: [torch.stack([items[i][level] for i in indices]).float() for level in levels]
            for name, items in self.features.items()
        }
        return features, {name: torch.stack([values[i] for i in indices]) for name, values in self.rest.items()}


def place_of(model: torch.nn.Module) -> torch.device:
    """The device of a model."""
    return next(model.parameters()).device


@torch.no_grad()
def encode(model: CATs, images: Tensor) -> list[Tensor]:
    """Features of uint8 images (B, S, S, 3)."""
    return model.features(normalise(images, model))


def training(objective: str, steps: int, batch: int) -> TrainConfig:
    """The settings that all rows share."""
    settings: dict[str, Any] = {"lr": 3e-4, "warmup": min(20, steps // 4), "clip": 1.0}
    settings |= {"schedule": "cosine", "steps": steps}
    if objective == "categories":
        settings |= {"direct": 0.25, "direct_share": 1.0}
    return TrainConfig(model=FULL, batch_size=batch, **settings)


def make_pool(objective: str, size: int, seed: int, backbone: CATs) -> Pool:
    """Features of ``size`` items of the training data of one seed."""
    photos = DATA / "Caltech-101"
    drawn: dict[str, Any] = {"size": FULL.image_size, "grid": FULL.feature_size, "seed": seed + (1 << 32)}
    if objective == "categories":
        return Pool(CategoryTriplets(CategoryFolder.open(photos), **drawn), ("i", "j", "w"), size, backbone)
    return Pool(WarpPairs(PhotoFolder.open(photos), **drawn), ("image_a", "image_b"), size, backbone)


def train(row: str, pool: Pool, config: TrainConfig, objective: str, seed: int) -> CATs:
    """One trained model; everything but the aggregator is the same for all rows of a seed."""
    torch.manual_seed(seed)
    model: Any = build_model(CATsConfig(**{**FULL.to_dict(), **ROWS[row]}), backbone_weights="package")
    model.feature_extraction.freeze()
    model.to(pool.rest["flow"][0].device)
    loss_of: Any = WarpConsistencyObjective(config) if objective == "categories" else FlowObjective()
    optimizer = torch.optim.AdamW(parameter_groups(model, config))
    levels = [IDS.index(i) for i in model.config.hyperpixels]
    rng = np.random.default_rng(seed)
    count = len(pool.rest["flow"])
    model.train()
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * learning_rate_factor(config, config.steps, step)
        features, rest = pool.batch(rng.choice(count, config.batch_size, replace=False).tolist(), levels)
        loss, _ = loss_of.of_features(model, features, rest)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], config.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 20 == 0:
            note(f"  {row}, seed {seed}: step {step + 1}, loss {loss.item():.3f}")
    return model.eval()


class Willow:
    """PCK on PF-WILLOW, or ``pairs`` of its pairs, from features that are computed once."""

    def __init__(self, backbone: CATs, pairs: int):
        self.samples = list(open_dataset(f"willow:{DATA / 'PF-WILLOW'}").select(limit=pairs))
        self.protocol = preset("corrected", "willow")
        self.maps: dict[Path, list[Tensor]] = {}
        size = FULL.preprocessing.size
        for sample in self.samples:
            for side, path in (("a", sample.image_a), ("b", sample.image_b)):
                if path not in self.maps:
                    pixels = torch.from_numpy(resize(sample.read(side), size).copy())[None]
                    pixels = pixels.to(place_of(backbone))
                    self.maps[path] = encode(backbone, pixels)

    @torch.no_grad()
    def __call__(self, model: CATs) -> dict[str, float]:
        """PCK in percent by alpha."""
        levels = [IDS.index(i) for i in model.config.hyperpixels]
        scores = []
        for sample in self.samples:
            a, b = ([self.maps[path][k] for k in levels] for path in (sample.image_a, sample.image_b))
            flow, _ = model.match_encoded(a, b)
            scores.append(score_flow(sample.keypoints, flow[0].cpu().numpy(), self.protocol))
        table = pck_table(scores, DEFAULT_ALPHAS, self.protocol.reduction)
        return {f"{alpha:g}": round(value, 2) for alpha, value in table.items()}


def measure_costs(rounds: int) -> dict[str, Any]:
    """Time of one pair (ratio to a single level, interleaved), GFLOP and parameters of every row."""
    images = torch.zeros(2, 1, 3, FULL.image_size, FULL.image_size)
    models = {row: build_model(CATsConfig(**{**FULL.to_dict(), **change})).eval() for row, change in ROWS.items()}

    def match(model: Any) -> object:
        with torch.inference_mode():
            return model.match(images[0], images[1])

    times = interleave({row: timed(partial(match, model)) for row, model in models.items()}, rounds, 3)
    costs = {}
    for row, model in models.items():
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.match(images[0], images[1])
        learnt = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("feature_extraction."))
        costs[row] = {
            "ms": float(np.median(times[row])),
            "ratio": ratio_interval(times[row], times["single level"]),
            "GFLOP": counter.get_total_flops() / 1e9,
            "parameters": learnt,
        }
    return costs


def table(document: dict[str, Any]) -> str:
    """The record as Markdown: PCK as mean and range over the seeds."""
    lines = ["# Ablations and COTR in one setting", "", f"Measured {document['date']}. {document['setting']}", ""]
    lines += ["| row | objective | updates | items of one | pairs | seeds | PCK@0.1 | range | PCK@0.05 | the paper |"]
    lines += ["|---|---|---:|---:|---:|---:|---:|---:|---:|---|"]
    groups: dict[tuple[str, str, int, int, int], list[dict[str, Any]]] = {}
    for run in document["runs"]:
        group = (run["objective"], run["row"], run["steps"], run["batch"], run["pairs"])
        groups.setdefault(group, []).append(run["pck"])
    for (objective, row, *sizes), scores in groups.items():
        coarse, fine = ([pck[alpha] for pck in scores] for alpha in ("0.1", "0.05"))
        spread = f"{min(coarse):.1f} to {max(coarse):.1f}" if len(coarse) > 1 else ""
        means = f"{np.mean(coarse):.1f} | {spread} | {np.mean(fine):.1f}"
        setting = " | ".join(map(str, sizes))
        lines.append(f"| {row} | {objective} | {setting} | {len(scores)} | {means} | {PAPER.get(row, '')} |")
    if document.get("costs"):
        lines += ["", "| row | time of a single level | GFLOP | learnt parameters |", "|---|---:|---:|---:|"]
        for row, cost in document["costs"].items():
            ratio = cost["ratio"]
            interval = f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
            lines.append(f"| {row} | {interval} | {cost['GFLOP']:.2f} | {cost['parameters'] / 1e6:.2f} M |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Train what is not recorded yet, one run after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objective", choices=("warps", "categories"), default="warps", help="(default: warps)")
    parser.add_argument("--steps", type=int, default=300, help="updates of each run (default: 300)")
    parser.add_argument("--batch", type=int, default=4, help="items of one update (default: 4)")
    parser.add_argument("--pool", type=int, default=400, help="items whose features are kept (default: 400, 300 MB)")
    parser.add_argument("--pairs", type=int, default=360, help="pairs of PF-WILLOW that are judged (default: 360, all)")
    parser.add_argument("--device", default="cpu", help="where it trains: cpu or cuda (default: cpu)")
    parser.add_argument("--seeds", default="0,1,2", help="seeds (default: 0,1,2)")
    parser.add_argument("--rows", default=",".join(ROWS), help="rows (default: all)")
    parser.add_argument("--times", action="store_true", help="measure run time, GFLOP and parameters instead")
    parser.add_argument("--table", action="store_true", help="write the table instead")
    options = parser.parse_args()
    document: dict[str, Any] = json.loads(RECORD.read_text()) if RECORD.is_file() else {"runs": []}
    document = {
        **describe_run("ablations", ["torch", "timm"]),
        "setting": "Frozen EfficientNet-Lite0 (blocks 11, 12, 15; single level and COTR 15), aggregator of depth 1, 4 "
        "heads, feed-forward ratio 1 (COTR 4), random start, temperature 0.02; trained on photos of Caltech-101 "
        "without keypoints, judged by PCK (corrected) on pairs of PF-WILLOW.",
        "runs": document["runs"],
        "costs": document.get("costs", {}),
    }
    if options.table:
        write_text(TABLE, table(document))
        return
    if options.times:
        document["costs"] = measure_costs(30)
        write_record(RECORD, document)
        return
    config = training(options.objective, options.steps, options.batch)
    backbone = CATs(FULL, backbone_weights="package").eval().to(options.device)
    willow = Willow(backbone, options.pairs)
    keys = ("objective", "row", "seed", "steps", "batch", "pool", "pairs", "device")
    for seed in map(int, options.seeds.split(",")):
        pool = None
        for row in options.rows.split(","):
            sizes = (options.steps, options.batch, options.pool, options.pairs)
            wanted = (options.objective, row, seed, *sizes, options.device)
            if any(tuple(run[key] for key in keys) == wanted for run in document["runs"]):
                continue
            if row == "cotr" and options.objective == "categories":
                continue  # no distributions of matches
            pool = pool or make_pool(options.objective, options.pool, seed, backbone)
            begun = time.monotonic()
            model = train(row, pool, config, options.objective, seed)
            pck = willow(model)
            document["runs"].append(
                {
                    **dict(zip(keys, wanted, strict=True)),
                    "pck": pck,
                    "minutes": round((time.monotonic() - begun) / 60, 1),
                }
            )
            write_record(RECORD, document)
            note(f"{row}, seed {seed}: PCK {pck}")


if __name__ == "__main__":
    main()
