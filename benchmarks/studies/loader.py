"""How many pairs a second the warps pipeline of ``cats-train`` feeds, without a model.

The loader is that of training: decoding, resizing, random warp, photometric change and ground truth in worker
processes, collated batches in the main one. Rates are of windows of a fixed number of batches after a warm-up. Nothing
else may run beside it.

Usage: python -m cats.benchmarks.studies.loader [--data DIR] [--workers 2] [--output NAME.json]
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from cats.benchmarks.record import SHARED, describe_run, spread, write_record
from cats.core.console import execute, new_app, progress, stdout
from cats.data.folders import PhotoFolder
from cats.data.warps import WarpPairs

app = new_app()
LIMIT = 60.0


def measure(pairs: WarpPairs, *, workers: int, batch_size: int, windows: int, batches: int) -> np.ndarray:
    """Pairs a second (windows,)."""
    from torch.utils.data import DataLoader

    warm_up = 4 * max(1, workers)  # what the workers have fetched ahead when the first batch arrives
    count = warm_up + windows * batches
    loader = iter(
        DataLoader(
            pairs,
            batch_size=batch_size,
            sampler=range(count * batch_size),
            num_workers=workers,
            prefetch_factor=4 if workers else None,
        )
    )
    rates = []
    with progress() as bar:
        task = bar.add_task("batches", total=count)
        for _ in range(warm_up):
            next(loader)
            bar.advance(task)
        for _ in range(windows):
            start = time.perf_counter()
            for _ in range(batches):
                next(loader)
            rates.append(batches * batch_size / (time.perf_counter() - start))
            bar.advance(task, batches)
    return np.array(rates)


@app.command()
def main_command(
    data: Annotated[Path, typer.Option(help="Folder of photos.")] = SHARED / "data" / "Caltech-101",
    workers: Annotated[int, typer.Option(help="Loader processes; 0 loads in the main one.", min=0)] = 2,
    batch_size: Annotated[int, typer.Option(help="Pairs of a batch.", min=1)] = 4,
    size: Annotated[int, typer.Option(help="Side of the images in pixels.", min=16)] = 256,
    windows: Annotated[int, typer.Option(help="Windows.", min=3)] = 11,
    batches: Annotated[int, typer.Option(help="Batches of a window.", min=1)] = 40,
    output: Annotated[Path | None, typer.Option(help="JSON file for the figures.", show_default=False)] = None,
) -> None:
    """Measure the loader of warped pairs."""
    photos = PhotoFolder.open(data)
    pairs = WarpPairs(photos, size=size, grid=size // 16)
    rates = measure(pairs, workers=workers, batch_size=batch_size, windows=windows, batches=batches)
    low, median, high = (spread(rates)[name] for name in ("q25", "median", "q75"))
    stdout.print(
        f"{len(photos)} photos, {size}x{size}, {workers} workers: {median:.1f} pairs/s (central half {low:.1f} to "
        f"{high:.1f}), {'over' if median >= LIMIT else 'UNDER'} {LIMIT:.0f}"
    )
    if output is not None:
        measured = {
            "data": f"{len(photos)} photos of {photos.root.name}",
            "size": size,
            "workers": workers,
            "batch_size": batch_size,
            "windows": windows,
            "batches_per_window": batches,
            "pairs_per_second": spread(rates),
        }
        write_record(output, {**describe_run("loader", ["torch", "albumentations"]), **measured})


if __name__ == "__main__":
    execute(app)
