"""The published structure on formula weights, against outputs that are committed and, where they are at hand, the
authors' own.

The committed files hold every K-th value of each output. Make them anew with ``python tests/model/test_goldens.py``
(with ``tests`` on the path), which refuses to write what differs from the authors' outputs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from reference import SHARED, golden_images

from cats.benchmarks.models import formula_weight
from cats.model import CATs, CATsConfig

FOLDER = Path(__file__).parent / "goldens"
HYPERPIXELS = {"spair": (0, 8, 20, 21, 26, 28, 29, 30), "pfpascal": (2, 17, 21, 22, 25, 26, 28)}
EXACT = ("corr_first", "corr_last", "source_projected_last", "target_projected_last")
SAMPLES = 8192  # of each output; the flow is whole


@torch.no_grad()
def compute(name: str, seed: int, batch: int) -> dict[str, np.ndarray]:
    """All outputs of the published structure on formula weights and images."""
    model = CATs(CATsConfig(hyperpixels=HYPERPIXELS[name])).eval()
    weights = {k: torch.from_numpy(formula_weight(k, tuple(v.shape))) for k, v in model.state_dict().items()}
    model.load_state_dict(weights)
    target, source = (model.features(torch.from_numpy(images)) for images in golden_images(seed, batch))
    corr = model.cost_volume(target, source)
    refined = model.match_features(target, source)
    outputs = {
        "corr_first": corr[:, 0],
        "corr_last": corr[:, -1],
        "source_projected_last": model.project(source)[:, -1],
        "target_projected_last": model.project(target)[:, -1],
        "refined": refined,
        "flow": model.soft_argmax(refined)[0],
    }
    return {key: value.numpy() for key, value in outputs.items()}


def thin(array: np.ndarray) -> np.ndarray:
    """Evenly spaced values of an output, an odd number apart so that all rows and columns have their turn."""
    return array.ravel()[:: array.size // SAMPLES | 1]


def check(actual: dict[str, np.ndarray], golden: dict[str, np.ndarray]) -> None:
    """Within the tolerance of the weights, which are not trained: a cell whose best candidates tie may flip."""
    for key in (*EXACT, "refined"):
        scale = np.abs(golden[key]).max()
        assert np.abs(actual[key] - golden[key]).max() < (1e-5 if key in EXACT else 1e-3) * scale, key
    assert np.quantile(np.abs(actual["flow"] - golden["flow"]), 0.99) < 1e-3


@pytest.mark.parametrize("name", HYPERPIXELS)
def test_goldens(name):
    golden = dict(np.load(FOLDER / f"{name}.npz"))
    actual = compute(name, int(golden["seed"]), int(golden["batch"]))
    samples = {key: thin(value) for key, value in actual.items()}
    check(samples, golden)
    authors = SHARED / "goldens" / f"{name}.npz"
    if authors.is_file():
        theirs = dict(np.load(authors))
        check(actual, theirs)
        check(golden, {key: thin(theirs[key]) for key in actual})
    for key in actual:
        with pytest.raises(AssertionError):
            check({**samples, key: samples[key] * 1.01}, golden)


def make() -> None:
    """Write the goldens from our outputs, compared in full with the authors'."""
    FOLDER.mkdir(exist_ok=True)
    for name in HYPERPIXELS:
        theirs = dict(np.load(SHARED / "goldens" / f"{name}.npz"))
        ours = compute(name, int(theirs["seed"]), int(theirs["batch"]))
        check(ours, theirs)
        samples = {key: thin(value).astype(np.float32) for key, value in ours.items()}
        np.savez_compressed(FOLDER / f"{name}.npz", seed=theirs["seed"], batch=theirs["batch"], **samples)
        print(name, (FOLDER / f"{name}.npz").stat().st_size)


if __name__ == "__main__":
    make()
