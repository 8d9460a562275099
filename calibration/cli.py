"""``cats-calibrate``: a float32 export to a quantized file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cats.core.console import execute, new_app, note, print_json
from cats.core.errors import InputError, VerificationError
from cats.core.files import check_destination

app = new_app()

EXAMPLES = """
Examples:

- `cats-calibrate cats.onnx --images photos/` writes cats.int8.onnx here; runs everywhere, made for TensorRT

- `cats-calibrate cats.onnx --images photos/ --for cpu` the fastest form for ONNX Runtime and OpenVINO on a CPU

- `cats-calibrate cats.onnx --data categories:photos --check willow:PF-WILLOW` compares PCK before and after too

- `cats-calibrate cats.onnx --pairs mine.csv --ranges mine.json` keeps the measured ranges

- `cats-calibrate cats.onnx --from-ranges mine.json --from-ranges more.json --keep decoder.proj` quantizes again

- `cats-calibrate cats.onnx --images photos/ --sensitivity --plot modules.png` ranks the modules

- `cats-calibrate cats.onnx --images photos/ --max-drift 0.5px --state search.json` mixed precision within a bound

- `cats-calibrate cats.onnx --data categories:photos --for cpu --precision mixed` int8 where 2 px allow it

- `cats-calibrate --find-divergence cats.onnx cats.fp16.onnx` names the first node where two precisions part

- `cats-calibrate cats.onnx --fit-confidence --data categories:photos -o calibrated.onnx` fits the confidence

Exit status: 0 done; 1 the file is written, but its flow differs from the float model's by more than 2 px (99th
percentile, at 256 x 256), two files part, or a bound cannot be met; 2 bad input.
"""

WHAT, HOW, OUTPUTS = "Photos to measure ranges on (one of these)", "How it is quantized", "Outputs"
STUDY = "Instead of quantizing as told"


def _option(*names: str, help: str, panel: str, default: bool | str = False, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=default, **more)


@app.command(epilog=EXAMPLES)
def main_command(
    model: Annotated[Path, typer.Argument(help="Float32 ONNX file of cats-export.", metavar="MODEL.onnx")],
    other: Annotated[
        Path | None,
        typer.Argument(help="Second file, of --find-divergence.", metavar="[OTHER.onnx]", show_default=False),
    ] = None,
    images: Annotated[
        Path | None, _option(help="Folder, searched recursively: photos of one sub-folder pair.", panel=WHAT)
    ] = None,
    pairs: Annotated[Path | None, _option(help="CSV with columns a,b.", panel=WHAT)] = None,
    data: Annotated[
        str | None, _option(help="Data set KIND:DIR, or categories:DIR.", panel=WHAT, metavar="KIND:DIR")
    ] = None,
    split: Annotated[str | None, _option(help="Split of --data: train, val or test.", panel=WHAT)] = None,
    from_ranges: Annotated[
        list[Path] | None, _option(help="Ranges of an earlier run instead of photos; several are merged.", panel=WHAT)
    ] = None,
    limit: Annotated[int, _option(help="Largest number of pairs.", panel=WHAT, default=True, min=1)] = 64,
    precision: Annotated[
        str,
        _option(
            help="int8 or fp8; mixed: int8 with the fewest modules in float32 (a search, bound 2px); "
            "fp16 with --sensitivity and the search.",
            panel=HOW,
            default=True,
        ),
    ] = "int8",
    method: Annotated[
        str,
        _option(help="Interval of each int8 activation: minmax, percentile, entropy, mse.", panel=HOW, default=True),
    ] = "mse",
    target: Annotated[
        str,
        _option(
            "--for",
            help="any (symmetric, as TensorRT demands), or cpu (with zero points: faster there, refused by TensorRT).",
            panel=HOW,
            default=True,
        ),
    ] = "any",
    weight_bits: Annotated[
        int, _option(help="8, or 7 for x86 CPUs without VNNI, where sums would saturate.", panel=HOW, default=True)
    ] = 8,
    balance: Annotated[
        bool,
        _option(
            "--balance/--no-balance",
            help="Even out the channels that the aggregator's linear layers read, at the cost of their weights.",
            panel=HOW,
            default=True,
        ),
    ] = True,
    balance_as: Annotated[
        Path | None, _option(help="Balance as in these ranges, so that both can be merged.", panel=HOW)
    ] = None,
    keep: Annotated[
        list[str] | None,
        _option(help="Module that stays float, or the beginning of its path; repeatable.", panel=HOW, metavar="MODULE"),
    ] = None,
    threads: Annotated[int | None, _option(help="CPU threads.", panel=HOW, default="one per core", min=1)] = None,
    output: Annotated[
        Path | None,
        _option("--output", "-o", help="File to write.", panel=OUTPUTS, default="MODEL.PRECISION.onnx here"),
    ] = None,
    ranges: Annotated[Path | None, _option(help="Write the measured ranges as JSON.", panel=OUTPUTS)] = None,
    check: Annotated[
        str | None,
        _option(help="Annotated pairs: also compare PCK of both models.", panel=OUTPUTS, metavar="KIND:DIR"),
    ] = None,
    as_json: Annotated[
        bool, _option("--json", help="Print the file's metadata, or the study's figures, as JSON.", panel=OUTPUTS)
    ] = False,
    find_divergence: Annotated[
        bool, _option("--find-divergence", help="Name the first node where MODEL and OTHER part.", panel=STUDY)
    ] = False,
    threshold: Annotated[
        float | None,
        _option(help="Relative error at which they part.", panel=STUDY, default="0.3 quantized, 0.03 else"),
    ] = None,
    sensitivity: Annotated[
        bool, _option("--sensitivity", help="Rank the modules by what lower precision does.", panel=STUDY)
    ] = False,
    max_drift: Annotated[
        str | None, _option(help="Keep the fewest modules so that p99 drifts by at most this, 0.5px.", panel=STUDY)
    ] = None,
    max_pck_drop: Annotated[
        float | None, _option(help="The same for points of PCK@0.1 on --check.", panel=STUDY)
    ] = None,
    by: Annotated[str, _option(help="Vary each module, or each block at once.", panel=STUDY, default=True)] = "module",
    state: Annotated[
        Path | None, _option(help="JSON file with which a killed search or ranking goes on.", panel=STUDY)
    ] = None,
    fit_confidence: Annotated[
        bool, _option("--fit-confidence", help="Fit soft-argmax temperature and confidence on --data.", panel=STUDY)
    ] = False,
    plot: Annotated[Path | None, _option(help="Picture of --sensitivity, or reliability diagram.", panel=STUDY)] = None,
) -> None:
    """Quantize a CATs model with the ranges of its activations on photos, and compare it with the float model."""
    from cats.calibration import commands
    from cats.calibration.calibrate import HELD_OUT, calibrate, check_ranges, load_float_model, measure_ranges
    from cats.calibration.inputs import SMALL
    from cats.calibration.ranges import Ranges
    from cats.calibration.studies.search import search
    from cats.calibration.studies.sensitivity import measure_sensitivity, plot_sensitivity
    from cats.core.images import quiet_pillow
    from cats.data import open_dataset
    from cats.evaluation.parity import TOLERANCE, print_figures

    quiet_pillow()
    if precision == "mixed":
        if find_divergence or sensitivity or fit_confidence:
            raise InputError("--precision mixed is a search of its own: give --precision int8 here")
        precision, kind = "int8", "mixed"
        if max_drift is None and max_pck_drop is None:
            max_drift = f"{TOLERANCE['mixed']}px"
    else:
        kind = "confidence" if fit_confidence else precision
    searching = max_drift is not None or max_pck_drop is not None
    if sum((find_divergence, sensitivity, searching, fit_confidence)) > 1:
        raise InputError("give one of --find-divergence, --sensitivity, --max-drift/--max-pck-drop, --fit-confidence")
    if find_divergence != (other is not None):
        raise InputError("--find-divergence compares two files: cats-calibrate --find-divergence A.onnx B.onnx")
    if plot is not None and not (sensitivity or fit_confidence):
        raise InputError("--plot belongs to --sensitivity or --fit-confidence: leave it out")
    if precision == "fp16" and not (sensitivity or searching):
        raise InputError("fp16 is typed by cats-export --fp16; here it goes with --sensitivity or --max-drift")
    if keep and (find_divergence or sensitivity or searching or fit_confidence):
        raise InputError("--keep belongs to quantizing: leave it out here")
    destination = output or Path(f"{model.name.removesuffix('.onnx')}.{kind}.onnx")
    for path in (destination, ranges, state, plot):
        check_destination(path)
    if destination.exists() and model.exists() and destination.samefile(model):
        raise InputError(f"{destination} is the model itself: give another -o")
    if find_divergence:
        assert other is not None
        on = _photos(images, pairs, data, split, None).spread(limit) if images or pairs or data else None
        commands.show_divergence(model, other, on, threshold=threshold, threads=threads, as_json=as_json)
        return
    if fit_confidence:
        commands.fit_and_write(model, data, destination, limit=limit, plot=plot, threads=threads, as_json=as_json)
        return
    if sensitivity or searching:
        bound = commands.bound_of(max_drift, max_pck_drop) if searching else None
        variants = commands.make_variants(
            load_float_model(model),
            _photos(images, pairs, data, split, from_ranges),
            from_ranges or [],
            precision=precision,
            balance=balance,
            options={"method": method, "target": target, "weight_bits": weight_bits},
            check=check,
            limit=limit,
            threads=threads,
            state=state,
        )
        if bound is None:
            ranking = measure_sensitivity(variants, by=by)
            if plot is not None:
                plot_sensitivity(ranking, plot)
            commands.show_sensitivity(ranking, as_json=as_json)
        else:
            answer = search(variants, bound, by=by)
            verified = commands.write_answer(variants, answer, destination)
            commands.show_search(answer, variants.candidates, as_json=as_json)
            if not verified:
                raise VerificationError(
                    f"{destination} meets the bound, but its flow differs from the float model's by more than the "
                    f"tolerance of {precision}: it is marked as not verified"
                )
        return
    photos = _photos(images, pairs, data, split, from_ranges)
    source = load_float_model(model)
    if check is not None:
        open_dataset(check)  # what cannot work is found before the work
    if photos is not None:
        if photos.skipped:
            note(f"{photos.skipped} files that are no images skipped")
        measured_on, judged_on = photos.spread(limit + HELD_OUT).split(HELD_OUT)
        if len(measured_on) < SMALL:
            note(
                f"warning: a small set, pairs to measure: {len(measured_on)}; ranges of other photos may be wider: "
                f"give {SMALL} pairs or more"
            )
        factors = balance if balance_as is None else Ranges.load(balance_as).balance
        found = measure_ranges(source, measured_on.spread(limit), balance=factors, threads=threads)
    else:
        judged_on = None
        found = Ranges.load_all(from_ranges or [])
        check_ranges(source, found)
    if ranges is not None:
        found.save(ranges)
        note(f"{ranges}: ranges of {len(found.tensors)} activations over {found.pairs} pairs")
    report = calibrate(
        source,
        found,
        destination,
        precision=precision,
        method=method,
        target=target,
        keep=keep or (),
        weight_bits=weight_bits,
        pairs=judged_on,
        data=check,
        threads=threads,
    )
    drift = report.drift
    heading = f"{destination}: {drift.against}; {drift.source}"
    print_figures(drift, heading, ("float", "quantized"), px=".3f", confidence=".3f")
    note(
        f"{destination}: {report.metadata.precision} for {target}, {destination.stat().st_size / 1e6:.1f} MB, "
        f"{len(report.quantized)} modules quantized, {len(report.kept)} kept in float32"
    )
    if target == "any" and precision == "int8":
        note("this form is for GPUs, and runs on CPUs too; to be fast there, --for cpu")
    if as_json:
        print_json(report.metadata.to_dict())
    if not drift.passed:
        raise VerificationError(
            f"{destination}: the flow differs from the float model's by more than the tolerance (see above); "
            "keep the most sensitive modules in float32 with --keep"
        )


def _photos(
    images: Path | None, pairs: Path | None, data: str | None, split: str | None, from_ranges: list[Path] | None
) -> Any:
    """The pairs to measure on, or None with ``--from-ranges``; exactly one source is needed."""
    from cats.calibration.inputs import pairs_from_csv, pairs_from_data, pairs_from_images

    given = [
        name
        for name, value in {"images": images, "pairs": pairs, "data": data, "from-ranges": from_ranges}.items()
        if value
    ]
    if len(given) != 1:
        what = f"not {' and '.join(f'--{name}' for name in given)}" if given else "to know the ranges of activations"
        raise InputError(f"give one of --images, --pairs, --data or --from-ranges, {what}")
    if split is not None and data is None:
        raise InputError("--split belongs to --data: leave it out")
    if images is not None:
        return pairs_from_images(images)
    if pairs is not None:
        return pairs_from_csv(pairs)
    return pairs_from_data(data, split) if data is not None else None


def main() -> None:
    """Entry point of ``cats-calibrate``."""
    execute(app)


if __name__ == "__main__":
    main()
