"""``cats sensitivity``: modules ranked by what lower precision does to the matches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cats.assets import find_model
from cats.calibration import options
from cats.core.console import Force, execute, new_app, print_json
from cats.core.images import quiet_pillow
from cats.core.outputs import OutputPlan

app = new_app(extra="calibrate")

EXAMPLES = """
Examples:

- `cats sensitivity cats.onnx --images photos/ --plot modules.png` ranks the modules by what int8 does to each

- `cats sensitivity cats.onnx --data categories:photos --by block --precision fp16` whole blocks, in float16

- `cats sensitivity cats.onnx --images photos/ --state ranking.json --json` goes on where it was killed
"""


@app.command(epilog=EXAMPLES)
def sensitivity(
    model: options.Model,
    images: options.Images = None,
    pairs: options.Pairs = None,
    data: options.Data = None,
    split: options.Split = None,
    from_ranges: options.FromRanges = None,
    limit: options.Limit = 64,
    precision: Annotated[
        str, options.option("--precision", help="int8, fp8 or fp16.", panel=options.HOW, default=True, metavar="NAME")
    ] = "int8",
    method: options.Method = "mse",
    target: options.Target = None,
    weight_bits: options.WeightBits = 8,
    balance: options.Balance = True,
    by: options.By = "module",
    check: options.Check = None,
    plot: Annotated[
        Path | None,
        options.option("--plot", help="Bar chart: .png, .svg or .pdf.", panel=options.OUTPUTS, metavar="FILE"),
    ] = None,
    state: options.State = None,
    threads: options.Threads = None,
    force: Force = False,
    as_json: options.AsJson = False,
) -> None:
    """Rank a model's modules by how far the matches move when each alone is in lower precision."""
    from cats.calibration.calibrate import load_float_model
    from cats.calibration.studies.sensitivity import measure_sensitivity, plot_sensitivity, print_ranking
    from cats.calibration.variants import open_variants

    quiet_pillow()
    model = find_model(model)
    outputs = OutputPlan(force=force).reads(model, images, pairs, *(from_ranges or ())).reads_data(data, check)
    outputs.writes(plot).writes(state, updates=True).check()
    variants = open_variants(
        load_float_model(model),
        options.open_photos(images, pairs, data, split, from_ranges),
        from_ranges or [],
        precision=precision,
        balance=balance,
        options={"method": method, "target": options.choose_target(target, precision)[0], "weight_bits": weight_bits},
        check=check,
        limit=limit,
        threads=threads,
        state=state,
    )
    ranking = measure_sensitivity(variants, by=by)
    if plot is not None:
        plot_sensitivity(ranking, plot)
    if as_json:
        print_json(ranking.to_dict())
    else:
        print_ranking(ranking)


if __name__ == "__main__":
    execute(app)
