"""``cats rank``: the photos of a folder by how well one photo matches them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from PIL import Image

from cats.core.console import execute, new_app, note, plain, print_json, progress, stdout, table
from cats.core.errors import InputError
from cats.core.images import quiet_pillow, read_image
from cats.core.outputs import OutputPlan
from cats.runtime.commands.options import (
    MANY,
    MAX_MEGAPIXELS,
    OUTPUTS,
    Backend,
    Cache,
    Calibrated,
    Count,
    Device,
    Force,
    Hint,
    Json,
    MaxMegapixels,
    MinConfidence,
    MinProbability,
    Model,
    Precision,
    Provider,
    Threads,
    check_probabilities,
    note_model,
    number_option,
    open_matcher,
    path_option,
)
from cats.runtime.document import matches_document, model_document
from cats.runtime.gallery import Ranking, rank_gallery
from cats.runtime.match_files import PICTURES, Selection, save_picture
from cats.runtime.matcher import Matcher
from cats.runtime.sheet import Ranked, draw_ranking

app = new_app()

EXAMPLES = """
Examples:

- `cats rank cats-tiny a.jpg photos/` lists the five photos that a.jpg matches best

- `cats rank cats.encoder.onnx a.jpg photos/ --features photos.npz` keeps what a split model says about the photos

- `cats rank cats.onnx a.jpg photos/ --top 9 -o best.png` draws the nine best with the same points in each
"""


@app.command(name="rank", epilog=EXAMPLES)
def main_command(
    model: Model,
    a: Annotated[Path, typer.Argument(help="The photo to find others for.", metavar="A", readable=False)],
    folder: Annotated[
        Path, typer.Argument(help="Folder of photos, with those below it; A itself is left out.", metavar="DIR")
    ],
    top: Annotated[int, number_option(help="How many to list and draw.", panel=MANY, min=1)] = 5,
    score: Annotated[
        str,
        path_option(help="confidence (mean over A, default) or forward-backward.", panel=MANY, metavar="NAME"),
    ] = "confidence",
    features: Annotated[
        Path | None,
        path_option(help=".npz that keeps the photos' features between runs, of a split model.", panel=MANY),
    ] = None,
    batch: Annotated[
        int | None,
        number_option(help="Pairs of one run of the model.", panel=MANY, default="8 on a GPU, else 1", min=1),
    ] = None,
    output: Annotated[
        Path | None,
        path_option("--output", "-o", help="Picture of A and the best photos (.png, .jpg, .webp).", panel=OUTPUTS),
    ] = None,
    as_json: Json = False,
    force: Force = False,
    count: Count = 8,
    min_confidence: MinConfidence = 0.0,
    min_probability: MinProbability = 0.0,
    calibrated: Calibrated = None,
    backend: Backend = None,
    provider: Provider = None,
    device: Device = None,
    precision: Precision = None,
    hint: Hint = None,
    threads: Threads = None,
    cache: Cache = None,
    max_megapixels: MaxMegapixels = MAX_MEGAPIXELS,
) -> None:
    """Rank the photos of a folder by how well one photo matches them."""
    quiet_pillow()
    plan = OutputPlan(force=force).reads(model, a, folder)
    plan.writes(output, suffixes=PICTURES).writes(features, updates=True).check()
    matcher = open_matcher(
        model,
        backend,
        max_megapixels,
        calibrated=calibrated,
        provider=provider,
        device=device,
        precision=precision,
        hint=hint,
        threads=threads,
        cache_dir=cache,
    )
    with matcher:
        note_model(matcher, model)
        check_probabilities(matcher, min_probability)
        with progress() as bar:
            task = bar.add_task("matching", total=None)
            found = rank_gallery(
                matcher,
                a,
                folder,
                score=score,
                cache=features,
                batch_size=batch,
                on_photos=lambda total: bar.update(task, total=total),
                on_photo=lambda: bar.advance(task),
            )
        for _, reason in found.failures:
            note(reason)
        best = found.ranked[:top]
        selection = Selection(None, min_confidence, None, count, min_probability)
        if as_json:
            for value, photo, match in best:
                document = matches_document(
                    match, selection.choose(match, None), a=a, b=photo, model=model_document(matcher)
                )
                print_json({**document, "score": round(value, 6)})
        else:
            rows = [[str(rank), f"{value:.4f}", plain(str(photo))] for rank, (value, photo, _) in enumerate(best, 1)]
            stdout.print(table(f"best matches of {plain(a.name)}", ["rank", score, "photo"], rows))
        if output is not None and best:
            save_picture(_draw(matcher, a, found, top, selection), output)
            note(f"wrote {output}")
    note(
        f"{len(found.ranked)} photos matched ({found.cached} from the cache"
        f"{', A itself left out' if found.left_out else ''}), "
        f"{found.skipped} other files skipped, {len(found.failures)} unreadable"
    )
    if found.failures:
        raise InputError(f"{len(found.failures)} photos below {folder} could not be read, see above")


def _draw(matcher: Matcher, a: Path, found: Ranking, top: int, selection: Selection) -> Image.Image:
    """The query and its best photos, with the points that the best one knows most surely."""
    query = read_image(a, max_pixels=matcher.max_pixels)
    best = found.ranked[:top]
    points = selection.choose_shown(best[0][2], None, query)
    ranked = [
        Ranked(
            read_image(photo, max_pixels=matcher.max_pixels),
            f"{rank}   {photo.name}   {value:.3f}",
            match.transfer(points),
            match.shown_at(points),
        )
        for rank, (value, photo, match) in enumerate(best, start=1)
    ]
    return draw_ranking(query, a.name, points, ranked)


def main() -> None:
    """Entry point of ``python -m cats.runtime.commands.rank``."""
    execute(app)


if __name__ == "__main__":
    main()
