"""What each part of CATs brings, and COTR in the same setting: the paper's Tables 2 and 3 in a setting that runs here.

All rows train alike: cats-tiny's frozen EfficientNet-Lite0 (ImageNet's weights), whose features of a pool of items are
computed once, the same items in the same order for one seed, random start, temperature 0.02, AdamW with warm-up and
cosine. Two objectives: ``warps`` (end-point error on known warps of photos, which COTR can be trained on too) and
``categories`` (probabilistic warp consistency on triplets, which needs distributions of matches and so leaves COTR
out). PCK is measured on PF-WILLOW, of which nothing is trained on; losses on items of the pool, on others of the same
categories of Caltech-101, and on categories that are held out.

Runs are recorded one by one in ``benchmarks/results/ablations.json``; one that is there already is not repeated, so
that the study can be interrupted. To share the work among processes or machines, give each its seeds, rows and
``--runs FILE``, to which it appends every run as one line; ``--merge FILE`` takes such lines into the record.
``--times`` adds run time (interleaved), GFLOP and parameters; nothing else may run beside it; ``--costs`` leaves out
the time. ``--start`` measures how loud the parts of a token are before training. ``--table`` writes
``ablations.md`` beside it and ``docs/pictures/ablations.png``.

Usage: python -m cats.benchmarks.studies.ablations [--objective warps] [--steps 100,400] [--seeds 0,1,2]
[--rows full,cotr] [--device cuda --amp bf16] (photos from $CATS_SHARED, default ../shared)
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from cats.architectures import build_model
from cats.benchmarks.record import REPOSITORY, timed, write_record
from cats.benchmarks.ship_tiny import ASSETS, DATA
from cats.benchmarks.statistics import interleave, ratio_interval
from cats.benchmarks.studies.ablation_data import IMAGES, Pool, Reader, Willow, open_sets, place_of
from cats.benchmarks.studies.ablation_record import (
    RECORD,
    SETTING,
    TABLE,
    append_run,
    describe,
    key_of,
    merge_runs,
    read_record,
)
from cats.benchmarks.studies.ablation_rows import ABLATIONS, FULL, IDS, ROWS
from cats.benchmarks.studies.ablation_start import measure_start
from cats.benchmarks.studies.ablation_table import draw, table
from cats.checkpoints import load_checkpoint, save_checkpoint
from cats.core.console import note
from cats.core.errors import InputError
from cats.core.files import write_text
from cats.model import CATs
from cats.training.configs import TrainConfig
from cats.training.objectives import FlowObjective, WarpConsistencyObjective
from cats.training.optimization import autocast, learning_rate_factor

PICTURE = REPOSITORY / "docs" / "pictures" / "ablations.png"
JUDGED = 64  # items whose loss is measured, of each kind


class OutOfTimeError(Exception):
    """The time that was given is over."""


def training(objective: str, steps: int, batch: int, amp: str = "off") -> TrainConfig:
    """The settings that all rows share."""
    settings: dict[str, Any] = {"lr": 3e-4, "warmup": max(1, min(100, steps // 10)), "clip": 1.0}
    settings |= {"schedule": "cosine", "steps": steps, "amp": amp}
    if objective == "categories":
        settings |= {"direct": 0.25, "direct_share": 1.0}
    return TrainConfig(model=FULL, batch_size=batch, **settings)


def objective_of(objective: str, config: TrainConfig) -> Any:
    """The loss of one of :data:`IMAGES`."""
    return WarpConsistencyObjective(config) if objective == "categories" else FlowObjective()


def untrained(name: str, backbone: CATs, seed: int) -> CATs:
    """A row's start, on the backbone's device."""
    torch.manual_seed(seed)
    return ROWS[name].build(backbone).to(place_of(backbone)).eval()


def train(
    name: str, backbone: CATs, pool: Pool, config: TrainConfig, objective: str, seed: int, end: float = np.inf
) -> CATs:
    """One trained model; everything but the aggregator is the same for all rows of a seed.

    Args:
        end: when to give up, by ``time.monotonic()``.

    Raises:
        OutOfTimeError: it was not done by then.
    """
    row, device = ROWS[name], place_of(backbone)
    model = untrained(name, backbone, seed)
    loss_of = objective_of(objective, config)
    optimizer = torch.optim.AdamW(row.groups(model, config))
    levels = [IDS.index(i) for i in model.config.hyperpixels]
    rng = np.random.default_rng(seed)
    learnt = [p for p in model.parameters() if p.requires_grad]
    model.train()
    for step in range(config.steps):
        if time.monotonic() > end:
            raise OutOfTimeError
        for group in optimizer.param_groups:
            group["lr"] = config.lr * group["factor"] * learning_rate_factor(config, config.steps, step)
        features, rest = pool.batch(rng.choice(len(pool), config.batch_size, replace=False).tolist(), levels)
        with autocast(device, config.amp):
            loss, _ = loss_of.of_features(model, features, rest)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in learnt if p.grad is not None], config.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % max(20, config.steps // 10) == 0:
            note(f"  {name}, seed {seed}: step {step + 1}, loss {loss.item():.3f}")
    return model.eval()


@torch.no_grad()
def judge(model: CATs, pool: Pool, config: TrainConfig, objective: str, batch: int = 8) -> float:
    """Mean loss of the first :data:`JUDGED` items, in float32; of warps the end-point error in pixels."""
    levels = [IDS.index(i) for i in model.config.hyperpixels]
    loss_of, losses = objective_of(objective, config), []
    count = min(JUDGED, len(pool))
    for first in range(0, count, batch):
        items = list(range(first, min(first + batch, count)))
        loss, _ = loss_of.of_features(model, *pool.batch(items, levels))
        losses.append((float(loss), len(items)))
    mean = sum(loss * size for loss, size in losses) / count
    return round(mean * (1 if objective == "categories" else FULL.image_size / FULL.feature_size), 4)


def measure_costs(rounds: int) -> dict[str, Any]:
    """GFLOP and parameters of every row; with ``rounds``, the time of one pair too (ratio to a single level,
    interleaved)."""
    images = torch.zeros(2, 1, 3, FULL.image_size, FULL.image_size)
    models: dict[str, Any] = {name: build_model(ROWS[name].config).eval() for name in ABLATIONS}

    def match(model: Any) -> object:
        with torch.inference_mode():
            return model.match(images[0], images[1])

    calls = {row: timed(partial(match, model)) for row, model in models.items()}
    times = interleave(calls, rounds, 3) if rounds else {}
    costs: dict[str, Any] = {}
    for row, model in models.items():
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.match(images[0], images[1])
        learnt = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("feature_extraction."))
        costs[row] = {"GFLOP": counter.get_total_flops() / 1e9, "parameters": learnt}
        if times:
            costs[row]["ms"] = float(np.median(times[row]))
            costs[row]["ratio"] = ratio_interval(times[row], times["single level"])
    return costs


def frozen_backbone() -> CATs:
    """cats-tiny, whose backbone has ImageNet's weights; nothing else of it is used."""
    return load_checkpoint(ASSETS / "cats-tiny.pt").model.eval()


def plan(steps: list[str], rows: list[str]) -> list[tuple[int, str]]:
    """Updates and row of every run of one seed, in the order of the options; each once.

    Raises:
        InputError: unknown rows, or not as many ``--rows`` as ``--steps``.
    """
    if len(steps) != len(rows):
        raise InputError(f"{len(steps)} times --steps and {len(rows)} times --rows: they go together, one of each")
    runs = [
        (int(count), row)
        for lengths, names in zip(steps, rows, strict=True)
        for count in lengths.split(",")
        for row in names.split(",")
    ]
    unknown = sorted({row for _, row in runs} - set(ROWS))
    if unknown:
        raise InputError(f"no rows {', '.join(unknown)}; there are {', '.join(ROWS)}")
    return list(dict.fromkeys(runs))


def run_all(options: argparse.Namespace, document: dict[str, Any]) -> None:
    """Train what is not recorded yet, one run after the other, until the budget is spent."""
    end = time.monotonic() + options.budget
    backbone, head = frozen_backbone(), describe()
    done = {key_of(run) for run in document["runs"]}
    objective = options.objective
    for seed in map(int, options.seeds.split(",")):
        wanted = []
        for steps, row in plan(options.steps, options.rows):
            run = {"objective": objective, "row": row, "seed": seed, "steps": steps}
            run |= {name: getattr(options, name) for name in ("batch", "pool", "pairs", "device", "amp")}
            # COTR has no distributions of matches.
            if key_of(run) not in done and (row != "cotr" or objective == "warps"):
                wanted.append(run)
        if not wanted:
            continue
        pools, willow = read_photos(options, seed, backbone)
        for run in wanted:
            config = training(objective, max(run["steps"], 1), options.batch, options.amp)
            started = time.monotonic()
            try:
                if run["steps"]:
                    model = train(run["row"], backbone, pools["pool"], config, objective, seed, end)
                else:
                    model = untrained(run["row"], backbone, seed)
            except OutOfTimeError:
                note(f"{run['row']}, seed {seed}: the time was over")
                return
            run["seconds"] = round(time.monotonic() - started, 1)
            run["pck"] = willow(model)
            run["loss"] = {name: judge(model, pool, config, objective) for name, pool in pools.items()}
            run |= head
            note(f"{run['row']}, seed {seed}, {run['steps']} updates, {run['seconds']} s: {run['pck']}, {run['loss']}")
            if options.runs:
                append_run(options.runs, run)
            else:
                document["runs"].append(run)
                write_record(RECORD, document)
            if options.save:
                name = f"{objective}-{run['row']}-{run['steps']}-{seed}.pt".replace(" ", "-").replace("/", "-")
                options.save.mkdir(parents=True, exist_ok=True)
                save_checkpoint(options.save / name, model, training={"study": "ablations", **run}, half=True)


def read_photos(options: argparse.Namespace, seed: int, backbone: CATs) -> tuple[dict[str, Pool], Willow]:
    """Features of what one seed trains on and is judged by; the backbone goes to the device."""
    begun = time.monotonic()
    trained, held_out = open_sets(DATA / "Caltech-101", options.objective, seed)
    wanted = {
        "pool": (trained, range(options.pool)),
        "seen": (trained, range(options.pool, options.pool + JUDGED)),
        "unseen": (held_out, range(JUDGED)),
    }
    with Reader(list(wanted.values()), options.loaders) as reader:
        backbone.to(options.device)
        willow = Willow(DATA / "PF-WILLOW", backbone, options.pairs)
        images = IMAGES[options.objective]
        pools = {name: Pool(stream, images, backbone) for name, stream in zip(wanted, reader.streams, strict=True)}
    note(f"seed {seed}: features of {options.pool} items after {time.monotonic() - begun:.0f} s")
    return pools, willow


def main() -> None:
    """Train, or write down what was trained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objective", choices=tuple(IMAGES), default="warps", help="(default: warps)")
    parser.add_argument(
        "--steps", action="append", help="updates of a run, several with commas; 0 judges the start (default: 300)"
    )
    parser.add_argument("--batch", type=int, default=4, help="items of one update (default: 4)")
    parser.add_argument("--pool", type=int, default=400, help="items whose features are kept (default: 400, 300 MB)")
    parser.add_argument("--pairs", type=int, default=360, help="pairs of PF-WILLOW that are judged (default: 360, all)")
    parser.add_argument("--device", default="cpu", help="where it trains: cpu or cuda (default: cpu)")
    parser.add_argument("--amp", choices=("off", "bf16"), default="off", help="precision of training (default: off)")
    parser.add_argument("--loaders", type=int, default=0, help="processes that read photos (default: 0)")
    parser.add_argument("--seeds", default="0,1,2", help="seeds (default: 0,1,2)")
    rows = f"of {', '.join(ROWS)} (default: the first 7); --steps with --rows may be repeated"
    parser.add_argument("--rows", action="append", help=f"rows, {rows}")
    parser.add_argument("--budget", type=float, default=np.inf, help="seconds after which it ends (default: none)")
    parser.add_argument("--save", type=Path, help="a folder for the trained models")
    parser.add_argument("--runs", type=Path, help="append runs to this file, one a line, instead of recording them")
    parser.add_argument("--merge", type=Path, nargs="+", help="take such files into the record instead")
    parser.add_argument("--times", action="store_true", help="measure run time, GFLOP and parameters instead")
    parser.add_argument("--costs", action="store_true", help="count GFLOP and parameters instead")
    parser.add_argument("--start", action="store_true", help="measure the untrained aggregator's tokens instead")
    parser.add_argument("--table", action="store_true", help="write table and picture instead")
    options = parser.parse_args()
    options.steps, options.rows = options.steps or ["300"], options.rows or [",".join(ABLATIONS)]
    document = {**read_record(), "setting": SETTING}
    if options.table:
        write_text(TABLE, table(document))
        draw(document, PICTURE)
    elif options.merge:
        write_record(RECORD, merge_runs(document, options.merge))
    elif options.start:
        write_record(RECORD, {**document, "start": measure_start(DATA / "PF-WILLOW", frozen_backbone())})
    elif options.times or options.costs:
        costs = measure_costs(30 if options.times else 0)
        write_record(RECORD, {**document, "costs": {**describe(), "rows": costs}})
    else:
        run_all(options, document)


if __name__ == "__main__":
    main()
