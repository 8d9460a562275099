"""How much the seed matters to ``cats-tiny``: the recipe with several seeds, in shorter runs.

Writes ``benchmarks/results/cats-tiny-seeds.json``, from which the model card takes its sentence. A run that is there
already is not repeated.

Usage: python -m cats.benchmarks.studies.tiny_seeds [--steps 250] [--seeds 0,1,2] [--work runs/seeds]
(data from $CATS_SHARED, default ../shared)
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

from cats.benchmarks.record import describe_run, write_record
from cats.benchmarks.ship_tiny import COMMANDS, DATA, SEEDS, evaluate
from cats.checkpoints import load_checkpoint


def train(folder: Path, seed: int, steps: int) -> dict[str, float]:
    """Metrics of the last state of one run: PCK on PF-WILLOW and the end-point error on warps of unseen photos."""
    best = folder / "best.pt"
    if not best.is_file():
        data = ["--data", f"categories:{DATA / 'Caltech-101'}", "--val", f"willow:{DATA / 'PF-WILLOW'}"]
        settings = [f"seed={seed}", f"steps={steps}", f"validate_every={steps}"]
        arguments = [part for setting in settings for part in ("--set", setting)]
        command = [str(COMMANDS / "cats-train"), *data, "--config", "tiny", *arguments, "--output", str(folder)]
        subprocess.run(command, check=True)
    dense = evaluate(best, f"warps:{DATA / 'photos'}")["dense"]
    metrics = load_checkpoint(best).metrics
    return {"seed": seed, "EPE (px)": dense["epe"], **{key: metrics[key] for key in metrics if key != "score"}}


def main() -> None:
    """Train with every seed and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=250, help="updates of each run (default: 250)")
    parser.add_argument("--seeds", default="0,1,2", help="seeds (default: 0,1,2)")
    parser.add_argument("--work", type=Path, default=Path("runs/seeds"), help="folder of the runs")
    options = parser.parse_args()
    seeds = [int(text) for text in options.seeds.split(",")]
    runs = [train(options.work / f"{options.steps}-{seed}", seed, options.steps) for seed in seeds]
    document = {
        **describe_run("tiny_seeds", ["torch", "timm"]),
        "config": "tiny",
        "steps": options.steps,
        "runs": runs,
    }
    write_record(SEEDS, document)


if __name__ == "__main__":
    main()
