"""``cats-calibrate``: a float32 export to a quantized file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cats.assets import find_model
from cats.calibration.options import (
    HOW,
    OUTPUTS,
    AsJson,
    Balance,
    By,
    Check,
    Data,
    FromRanges,
    Images,
    Limit,
    Method,
    Model,
    Pairs,
    Split,
    State,
    Target,
    Threads,
    WeightBits,
    open_photos,
    option,
)
from cats.core.console import Command, Force, execute, new_app, note, print_json
from cats.core.errors import InputError, VerificationError
from cats.core.images import quiet_pillow
from cats.core.outputs import OutputPlan

app = new_app(extra="calibrate")

EXAMPLES = """
Examples:

- `cats-calibrate cats.onnx --images photos/` writes cats.int8.onnx here; runs everywhere, made for TensorRT

- `cats-calibrate cats.onnx --images photos/ --for cpu` the fastest form for ONNX Runtime and OpenVINO on a CPU

- `cats-calibrate cats.onnx --data categories:photos --check willow:PF-WILLOW` compares PCK before and after too

- `cats-calibrate cats.onnx --pairs mine.csv --ranges mine.json` keeps the measured ranges

- `cats-calibrate cats.onnx --from-ranges mine.json --from-ranges more.json --keep decoder.proj` quantizes again

- `cats-calibrate cats.onnx --images photos/ --max-drift 0.5px --state search.json` mixed precision within a bound

- `cats-calibrate cats.onnx --data categories:photos --for cpu --precision mixed` int8 where 2 px allow it

Exit status: 0 done; 1 the file is written, but its flow differs from the float model's by more than 2 px (99th
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
    model: Model,
    images: Images = None,
    pairs: Pairs = None,
    data: Data = None,
    split: Split = None,
    from_ranges: FromRanges = None,
    limit: Limit = 64,
    precision: Annotated[
        str,
        option(
            "--precision",
            help="int8 or fp8; mixed: int8 with the fewest modules in float32 (a search, bound 2px); "
            "fp16 with the search.",
            panel=HOW,
            default=True,
        ),
    ] = "int8",
    method: Method = "mse",
    target: Target = "any",
    weight_bits: WeightBits = 8,
    balance: Balance = True,
    balance_as: Annotated[
        Path | None, option("--balance-as", help="Balance as in these ranges, so that both can be merged.", panel=HOW)
    ] = None,
    keep: Annotated[
        list[str] | None,
        option(
            "--keep",
            help="Module that stays float, or the beginning of its path; repeatable.",
            panel=HOW,
            metavar="MODULE",
        ),
    ] = None,
    max_drift: Annotated[
        str | None,
        option("--max-drift", help="Keep the fewest modules so that p99 drifts by at most this, 0.5px.", panel=HOW),
    ] = None,
    max_pck_drop: Annotated[
        float | None, option("--max-pck-drop", help="The same for points of PCK@0.1 on --check.", panel=HOW)
    ] = None,
    by: By = "module",
    threads: Threads = None,
    output: Annotated[
        Path | None,
        option("--output", "-o", help="File to write.", panel=OUTPUTS, default="MODEL.PRECISION.onnx here"),
    ] = None,
    ranges: Annotated[Path | None, option("--ranges", help="Write the measured ranges as JSON.", panel=OUTPUTS)] = None,
    check: Check = None,
    state: State = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Quantize a CATs model with the ranges of its activations on photos, and compare it with the float model."""
    from cats.calibration.calibrate import HELD_OUT, calibrate, check_ranges, load_float_model, measure_ranges
    from cats.calibration.inputs import SMALL
    from cats.calibration.ranges import Ranges
    from cats.calibration.search import parse_bound, print_answer, search, write_answer
    from cats.calibration.variants import open_variants
    from cats.data import open_dataset
    from cats.evaluation.parity import TOLERANCE, print_figures

    quiet_pillow()
    model = find_model(model)
    kind = precision
    if precision == "mixed":
        precision = "int8"
        if max_drift is None and max_pck_drop is None:
            max_drift = f"{TOLERANCE['mixed']}px"
    searching = max_drift is not None or max_pck_drop is not None
    if precision == "fp16" and not searching:
        raise InputError("fp16 is typed by cats-export --fp16; here it goes with --max-drift")
    if keep and searching:
        raise InputError("--keep belongs to quantizing without a search: leave it out here")
    destination = output or Path(f"{model.name.removesuffix('.onnx')}.{kind}.onnx")
    outputs = OutputPlan(force=force).reads(model, images, pairs, *(from_ranges or ()), balance_as)
    outputs.reads_data(data, check).writes(destination, suffixes=(".onnx",)).writes(ranges, suffixes=(".json",))
    outputs.writes(state, updates=True).check()
    if searching:
        variants = open_variants(
            load_float_model(model),
            open_photos(images, pairs, data, split, from_ranges),
            from_ranges or [],
            precision=precision,
            balance=balance,
            options={"method": method, "target": target, "weight_bits": weight_bits},
            check=check,
            limit=limit,
            threads=threads,
            state=state,
        )
        answer = search(variants, parse_bound(max_drift, max_pck_drop), by=by)
        verified = write_answer(variants, answer, destination)
        print_answer(answer, variants.candidates, as_json=as_json)
        if not verified:
            raise VerificationError(
                f"{destination} meets the bound, but its flow differs from the float model's by more than the "
                f"tolerance of {precision}: it is marked as not verified"
            )
        return
    photos = open_photos(images, pairs, data, split, from_ranges)
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


def main() -> None:
    """Entry point of ``cats-calibrate``."""
    execute(app)


if __name__ == "__main__":
    main()
