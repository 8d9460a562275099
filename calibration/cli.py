"""``cats-calibrate``: a float32 export to a quantized file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cats.assets import find_model
from cats.calibration import options
from cats.core.console import Command, Force, execute, new_app, note, print_json
from cats.core.errors import InputError, VerificationError
from cats.core.images import quiet_pillow
from cats.core.outputs import OutputPlan
from cats.runtime.split import KINDS, find_split, name_files

app = new_app(extra="calibrate")

EXAMPLES = """
Examples:

- `cats-calibrate cats.onnx --images photos/` writes cats.int8.onnx here: int8, but for what 2 px need in float32

- `cats-calibrate cats.onnx --images photos/ --for tensorrt` a file for cats-build

- `cats-calibrate cats.encoder.onnx --images photos/` both files of a split model: cats.int8.encoder.onnx, .matcher.onnx

- `cats-calibrate cats.end-to-end.onnx --images photos/ --keep-as cats.int8.onnx` the modules that another file keeps

- `cats-calibrate cats.onnx --data categories:photos --check willow:PF-WILLOW` compares PCK before and after too

- `cats-calibrate cats.onnx --images photos/ --max-drift 0.5px --state search.json` within a bound; goes on if killed

- `cats-calibrate cats.onnx --pairs mine.csv --as-is --ranges mine.json` everything in int8, and keeps the ranges

- `cats-calibrate cats.onnx --from-ranges mine.json --from-ranges more.json --keep decoder.proj` quantizes again

Exit status: 0 done; 1 the file is written, but its matches differ from the float model's by more than 2 px (99th
percentile, at 256 x 256), or a bound cannot be met; 2 bad input.
"""

MOVED = {
    "--sensitivity": "cats sensitivity MODEL.onnx --images DIR",
    "--find-divergence": "cats divergence A.onnx B.onnx",
    "--fit-confidence": "cats fit-confidence MODEL.onnx --data KIND:DIR",
}
"""Options of earlier versions, and the commands that took their place."""


class Calibrate(Command):
    """The command, which knows what has moved."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As click does; raises :class:`InputError` for an option that became a command of its own."""
        for argument in args:
            if argument in MOVED:
                raise InputError(f"{argument} is a command of its own now: {MOVED[argument]}")
        return super().parse_args(ctx, args)


@app.command(cls=Calibrate, epilog=EXAMPLES)
def main_command(
    ctx: typer.Context,
    model: options.Model,
    images: options.Images = None,
    pairs: options.Pairs = None,
    data: options.Data = None,
    split: options.Split = None,
    from_ranges: options.FromRanges = None,
    limit: options.Limit = 64,
    max_drift: Annotated[
        str | None,
        options.option(
            "--max-drift",
            help="Leave modules in float32 until the matches move by at most this (p99, at 256 x 256).",
            panel=options.SEARCH,
            default="2px",
            metavar="PX",
        ),
    ] = None,
    max_pck_drop: Annotated[
        float | None,
        options.option("--max-pck-drop", help="The same for points of PCK@0.1 on --check.", panel=options.SEARCH),
    ] = None,
    as_is: Annotated[
        bool, options.option("--as-is", help="No search: everything in lower precision.", panel=options.SEARCH)
    ] = False,
    keep: Annotated[
        list[str] | None,
        options.option(
            "--keep",
            help="No search: this module stays float, or all whose paths begin so; repeatable.",
            panel=options.SEARCH,
            metavar="MODULE",
        ),
    ] = None,
    keep_as: Annotated[
        Path | None,
        options.option(
            "--keep-as",
            help="No search: the modules stay float that stay so in this file of the same weights, of any form.",
            panel=options.SEARCH,
            metavar="FILE",
        ),
    ] = None,
    by: options.By = "block",
    precision: Annotated[
        str,
        options.option(
            "--precision", help="int8, fp8, or fp16 (with a search).", panel=options.HOW, default=True, metavar="NAME"
        ),
    ] = "int8",
    target: options.Target = None,
    method: options.Method = "mse",
    weight_bits: options.WeightBits = 8,
    exact: options.ExactSums = False,
    balance: options.Balance = True,
    balance_as: Annotated[
        Path | None,
        options.option(
            "--balance-as",
            help="Balance as in these ranges, so that both can be merged.",
            panel=options.HOW,
            metavar="FILE",
        ),
    ] = None,
    threads: options.Threads = None,
    output: Annotated[
        Path | None,
        options.option(
            "--output",
            "-o",
            help="File to write.",
            panel=options.OUTPUTS,
            default="MODEL.PRECISION.onnx here; of a split model MODEL.PRECISION.encoder.onnx and .matcher.onnx",
            metavar="FILE",
        ),
    ] = None,
    ranges: Annotated[
        Path | None,
        options.option("--ranges", help="Write the measured ranges as JSON.", panel=options.OUTPUTS, metavar="FILE"),
    ] = None,
    check: options.Check = None,
    state: options.State = None,
    time: Annotated[
        bool,
        options.option(
            "--time/--no-time", help="Time the file against the float file at the end.", panel=options.OUTPUTS
        ),
    ] = True,
    force: Force = False,
    as_json: options.AsJson = False,
) -> None:
    """Quantize a CATs model with photos, leave in float32 what a bound on the matches needs, and compare the result."""
    from cats.calibration.calibrate import (
        HELD_OUT,
        calibrate,
        check_form,
        check_ranges,
        kept_modules,
        load_float_model,
        measure_ranges,
    )
    from cats.calibration.ranges import Ranges
    from cats.calibration.search import parse_bound, print_answer, search
    from cats.calibration.sessions import exact_sums
    from cats.calibration.timing import compare_speed, print_speed
    from cats.calibration.variants import Variants, check_precision
    from cats.data import open_dataset
    from cats.data.photo_pairs import SMALL, demo_photos
    from cats.evaluation.parity import TOLERANCE, print_figures

    quiet_pillow()
    ctx.with_resource(exact_sums(exact))
    model, keep_as = find_model(model), None if keep_as is None else find_model(keep_as)
    if precision == "mixed":
        raise InputError("--precision mixed is what --precision int8 does now: leave it out")
    check_precision(precision)
    searching = not as_is and not keep and keep_as is None
    if not searching and (max_drift is not None or max_pck_drop is not None or state is not None):
        raise InputError(
            "--max-drift, --max-pck-drop and --state belong to the search: leave out --as-is, --keep and --keep-as"
        )
    if precision == "fp16" and not searching:
        raise InputError("fp16 without a search is typed by cats-export --fp16")
    bound = parse_bound(max_drift, max_pck_drop, TOLERANCE[precision])
    split_files = find_split(model)
    stem = model.name.removesuffix(".onnx")
    if split_files is not None:
        stem = split_files[0].name.removesuffix(".encoder.onnx")
    destination = output or Path(f"{stem}.{precision}.onnx")
    outputs = OutputPlan(force=force).reads(*(split_files or [model]), images, pairs, *(from_ranges or ()), balance_as)
    outputs.reads(keep_as).reads_data(data, check).writes(ranges, suffixes=(".json",))
    outputs.writes(*name_files(destination, KINDS if split_files else ("",)).values(), suffixes=(".onnx",))
    outputs.writes(state, updates=True).check()
    where, reason = options.choose_target(target, precision)
    photos = options.open_photos(images, pairs, data, split, from_ranges)
    source = load_float_model(model)
    check_form(source, precision)
    keep = [*(keep or ()), *(kept_modules(keep_as, source) if keep_as is not None else ())]
    dataset = open_dataset(check) if check is not None else None  # what cannot work is found before the work
    note(f"made for {'CPUs' if where == 'cpu' else 'TensorRT'}: {reason}")
    if precision == "int8" and not exact and (saturates := options.saturation_note(where, weight_bits)):
        note(saturates)
    found: Ranges | None = None
    if photos is None:
        judged_on = demo_photos()
        found = Ranges.load_all(from_ranges or [])
        check_ranges(source, found)
    else:
        if photos.skipped:
            note(f"{photos.skipped} files that are no images skipped")
        measured_on, judged_on = photos.spread(limit + HELD_OUT).split(HELD_OUT)
        if len(measured_on) < SMALL:
            note(
                f"warning: a small set, pairs to measure: {len(measured_on)}; ranges of other photos may be wider: "
                f"give {SMALL} pairs or more"
            )
        if precision != "fp16":
            factors = balance if balance_as is None else Ranges.load(balance_as).balance
            found = measure_ranges(source, measured_on.spread(limit), balance=factors, threads=threads)
    if ranges is not None and found is not None:
        found.save(ranges)
        note(f"{ranges}: ranges of {len(found.tensors)} activations over {found.pairs} pairs")
    how: dict[str, Any] = {"method": method, "target": where, "weight_bits": weight_bits}
    answer = None
    if searching:
        variants = Variants(
            source,
            found,
            judged_on,
            precision=precision,
            options={} if precision == "fp16" else how,
            dataset=dataset.select(limit=limit) if dataset is not None and max_pck_drop is not None else None,
            threads=threads,
            state=state,
        )
        answer = search(variants, bound, by=by)
        print_answer(answer, variants.candidates)
    report = calibrate(
        source,
        found,
        destination,
        precision=precision,
        keep=answer.keep if answer else keep,
        pairs=judged_on,
        data=check,
        found=answer.to_dict() if answer else None,
        threads=threads,
        **how,
    )
    drift, names = report.drift, " and ".join(map(str, report.files.values()))
    heading = f"{names}: {drift.against}; {drift.source}"
    print_figures(drift, heading, ("float", "quantized"), px=".3f", confidence=".3f")
    for kind, path in report.files.items():
        part = report.described[kind].calibration or {}
        note(
            f"{path}: {report.described[kind].precision}, {path.stat().st_size / 1e6:.1f} MB, float "
            f"{source.by_kind[kind].path.stat().st_size / 1e6:.1f} MB; {part['quantized_modules']} modules quantized, "
            f"{len(part['kept'])} kept in float32"
        )
        if time and precision == "int8":
            print_speed(compare_speed(source.by_kind[kind].path, path, threads=threads), where, kind)
        if as_json:
            print_json(report.described[kind].to_dict())
    if not drift.passed:
        raise VerificationError(
            f"{names}: the matches move by more than {drift.tolerance_px:g} px (p99, see above); "
            + (
                "the file is marked as not verified"
                if searching
                else "leave out --as-is, --keep and --keep-as, and cats-calibrate finds what must stay in float32"
            )
        )


def main() -> None:
    """Entry point of ``cats-calibrate``."""
    execute(app)


if __name__ == "__main__":
    main()
