"""``cats label``: label a few photos, get the labels of all the others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.text import Text

from cats import __version__
from cats.assets import asset, find_model
from cats.core.console import execute, new_app, note, print_json, progress, stdout, table
from cats.core.errors import InputError
from cats.core.files import file_key, sha256_file
from cats.core.images import quiet_pillow
from cats.core.outputs import OutputPlan
from cats.core.text import plain
from cats.labelling.annotations import NOT_LABELLED, AnnotatedPhoto, Annotations
from cats.labelling.formats import FORMATS, Format, choose_format, read_annotations, recognise, write_annotations
from cats.labelling.formats.common import name_of
from cats.labelling.formats.yolo import MARK
from cats.labelling.gather import Gathered, check_references, common_root, gather_photos
from cats.labelling.journal import Journal
from cats.labelling.label import MODEL, LabelledPhoto, goes_through, label_photos, open_for_labelling
from cats.labelling.review import Reviewed, write_sheet
from cats.labelling.through import FEW, NEIGHBOURS
from cats.runtime import Matcher
from cats.runtime.commands.options import (
    ENGINE,
    MAX_MEGAPIXELS,
    OUTPUTS,
    Backend,
    Device,
    Force,
    MaxMegapixels,
    Precision,
    Provider,
    Threads,
    engine_options,
    note_model,
    number_option,
    path_option,
)
from cats.runtime.split import find_split

app = new_app()

EXAMPLES = """
Examples:

- `cats label refs/refs.json photos/ -o labels.json` COCO in, COCO out; the photos of refs.json lie beside it

- `cats label refs.xml photos/ -o labels.xml --review sheet.html` CVAT, with a page on which labels are corrected

- `cats label refs.tps photos/ -o labels.csv --min-probability 0.8` leaves out points that are less sure

- `cats label refs.json cars/ ducks/ new.txt -o labels.json --categories kinds.csv` several kinds of object
"""

LABELS = "Which labels"
_LISTED = 20  # photos that are named in the summary; --json names all


@app.command(epilog=EXAMPLES)
def main_command(
    references: Annotated[
        Path, typer.Argument(help="Label file of one to ten photos; of YOLO its folder.", metavar="REFERENCES")
    ],
    photos: Annotated[
        list[Path],
        typer.Argument(help="Folders, photos, or lists of photos (.txt, a name a line).", metavar="PHOTOS..."),
    ],
    output: Annotated[
        Path,
        path_option("--output", "-o", help="Label file to write; its suffix says the format.", panel=OUTPUTS),
    ],
    review: Annotated[
        Path | None, path_option(help="Also write a page (.html) on which the labels are corrected.", panel=OUTPUTS)
    ] = None,
    format: Annotated[
        str | None,
        path_option(
            help=f"Format of the output: {', '.join(FORMATS)}. Default: by its suffix, .json and .csv like REFERENCES.",
            panel=OUTPUTS,
            metavar="NAME",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON, every photo in it.", rich_help_panel=OUTPUTS)
    ] = False,
    force: Force = False,
    references_format: Annotated[
        str | None,
        path_option(help="Format of REFERENCES. Default: by its suffix and first lines.", panel=LABELS, metavar="NAME"),
    ] = None,
    root: Annotated[
        Path | None,
        path_option(
            help="Folder of the photos that REFERENCES names. Default: where it lies.", panel=LABELS, metavar="DIR"
        ),
    ] = None,
    categories: Annotated[
        Path | None,
        path_option(
            help="CSV with columns photo,category, names relative to it. Without: the name of a sub-folder, "
            "else the references that fit best.",
            panel=LABELS,
        ),
    ] = None,
    min_probability: Annotated[
        float,
        number_option(help="Points less likely to be right are not labelled.", panel=LABELS, min=0, max=1),
    ] = 0.5,
    looks: Annotated[
        int,
        number_option(help="Times that photos are matched, from the second on cut to the object.", panel=LABELS, min=1),
    ] = 2,
    through: Annotated[
        int | None,
        number_option(
            help="So many photos that were just labelled help with each of the others.",
            panel=LABELS,
            default=f"{NEIGHBOURS} for a category of at most {FEW} labelled objects, else 0",
            min=0,
        ),
    ] = None,
    model: Annotated[
        Path | None,
        path_option(
            help="ONNX file of cats-export, or .plan of cats-build; a split one is fastest. Default: cats-tiny.",
            panel=ENGINE,
        ),
    ] = None,
    backend: Backend = None,
    provider: Provider = None,
    device: Device = None,
    precision: Precision = None,
    threads: Threads = None,
    streams: Annotated[
        int | None,
        number_option(
            help="Photos labelled side by side, on CPUs each with its share of the cores.",
            panel=ENGINE,
            default="one per core on a CPU",
            min=1,
        ),
    ] = None,
    max_megapixels: MaxMegapixels = MAX_MEGAPIXELS,
) -> None:
    """Carry the keypoints, boxes and outlines of a few labelled photos to many others."""
    quiet_pillow()
    given = _read_references(references, references_format, root)
    like = FORMATS[references_format] if references_format else recognise(references)
    chosen = choose_format(output, format, like)
    gathered = gather_photos(photos, given, categories)
    if not gathered.photos:
        raise InputError(f"all {len(gathered.labelled)} photos are references: there is nothing left to label")
    photos_read = [path for path, _ in gathered.photos] + [p.path for p in (*given.photos, *gathered.labelled)]
    _check_outputs(output, chosen, review, force, [references, *photos, *photos_read, categories, model])
    _announce(gathered, given)
    settings = {"looks": looks, "through": through, "min_probability": min_probability}
    engine = engine_options(backend, max_megapixels, provider=provider, device=device, precision=precision)
    file = _find_model(model)
    run = {**_describe_run(references, given, file), **settings, **engine}
    if threads is not None:
        engine["threads"] = threads
    together = gathered.photos if goes_through(given, through) else []
    kept = Journal(output, run, together)
    try:
        with open_for_labelling(file, streams, **engine) as matcher:
            note_model(matcher, file)
            results = _label(given, gathered, kept, matcher, streams, settings)
        _write(results, gathered, given, output, chosen, review, matcher.max_pixels, as_json)
    except BaseException:
        kept.close()
        if kept.count:
            note(f"{kept.count} photos are kept in {kept.path}: the same command goes on from there")
        raise
    kept.close(done=True)
    failures = [result for result in results if result.error is not None]
    if failures:
        raise InputError(f"{len(failures)} of {len(results)} photos could not be labelled, see above")


def _read_references(path: Path, format: str | None, root: Path | None) -> Annotations:
    notes: list[str] = []
    annotations = read_annotations(path, format=format, root=root, notes=notes)
    for line in notes:
        note(f"{path}: {line}")
    return check_references(annotations, path)


def _find_model(model: Path | None) -> Path:
    """The model's file; ``cats-tiny`` is split here."""
    if model is None or (str(model) == "cats-tiny" and not model.exists()):
        return asset(MODEL)
    return find_model(model)


def _check_outputs(output: Path, chosen: Format, review: Path | None, force: bool, reads: list[Path | None]) -> None:
    """Refuse what cannot be written, what is read, and what exists, before the work."""
    plan = OutputPlan(force=force).reads(*reads).writes(review, suffixes=(".html", ".htm"))
    if chosen is FORMATS["yolo"]:
        plan.writes_folder(output, MARK)
    else:
        plan.writes(output, suffixes=chosen.suffixes)
    plan.check()


def _announce(gathered: Gathered, references: Annotations) -> None:
    """Say what is about to be done."""
    used = {annotation.category for _, annotation in references.objects()}
    objects = sum(1 for _ in references.objects())
    note(f"{objects} labelled object{'s' * (objects != 1)} of {', '.join(sorted(used))}; {len(gathered.photos)} photos")
    if gathered.skipped:
        note(f"{gathered.skipped} other files skipped")
    if gathered.labelled:
        note(f"{len(gathered.labelled)} of the photos are references: they keep the labels they have")
    rest = len(gathered.photos) - gathered.by_table - gathered.by_folder
    if len(used) > 1:
        note(
            f"category of {gathered.by_table} photos from the table, of {gathered.by_folder} from their folder, "
            f"of {rest} from the references that fit best"
        )


def _describe_run(path: Path, references: Annotations, model: Path) -> dict[str, Any]:
    """What the result of a photo depends on, but for the photo and the settings."""
    return {
        "version": __version__,
        "references": sha256_file(path / "data.yaml" if path.is_dir() else path),
        "photos": [file_key(photo.path) for photo in references.photos],
        "model": [file_key(part) for part in find_split(model) or (model,)],
    }


def _label(
    references: Annotations,
    gathered: Gathered,
    journal: Journal,
    matcher: Matcher,
    streams: int | None,
    settings: dict[str, Any],
) -> list[LabelledPhoto]:
    """Results of all photos in their order, out of the journal or new."""
    if journal.count:
        note(f"{journal.count} photos were looked at before the last run ended; {journal.path.name} has kept them")
    together = goes_through(references, settings["through"])  # then all photos are needed, kept or not
    kept = {} if together else {photo: journal.get(*photo) for photo in gathered.photos}
    done = {photo: result for photo, result in kept.items() if result is not None}
    missing = [photo for photo in gathered.photos if photo not in done]
    passes = 2 if together else 1
    with progress() as bar:
        task = bar.add_task("labelling", total=passes * len(gathered.photos), completed=passes * len(done))
        results = label_photos(
            references,
            missing,
            matcher,
            **settings,
            streams=streams,
            memory=journal,
            on_photo=lambda: bar.advance(task),
        )
        for photo, result in zip(missing, results, strict=True):
            done[photo] = result
            if result.error is not None:
                note(result.error if str(result.path) in result.error else f"{result.path}: {result.error}")
            else:
                journal.add(result, photo[1])
    return [done[photo] for photo in gathered.photos]


def _write(
    results: list[LabelledPhoto],
    gathered: Gathered,
    references: Annotations,
    output: Path,
    chosen: Format,
    review: Path | None,
    max_pixels: int,
    as_json: bool,
) -> None:
    """Write the label file and the page, and print the summary."""
    readable = [result for result in results if result.error is None]
    written = [_as_photo(result) for result in readable] + gathered.labelled
    if not written:
        raise InputError(f"none of the {len(results)} photos could be labelled, see above; {output} is not written")
    annotations = Annotations(references.categories, tuple(written))
    root = common_root([photo.path for photo in written], output)
    lost = write_annotations(annotations, output, format=chosen.name, root=root)
    note(f"wrote {output} ({chosen.title})")
    for line in lost:
        note(f"note: {chosen.title} {line}")
    if root != output.parent and chosen is not FORMATS["yolo"]:
        note(f"note: file names in it are relative to {root}: give --root {root} where it is read")
    if review is not None:
        shown = [_as_reviewed(result) for result in readable]
        with progress() as bar:
            task = bar.add_task("review sheet", total=len(shown))
            write_sheet(
                review, shown, references, references.categories, output, chosen, root,
                max_pixels=max_pixels, on_photo=lambda: bar.advance(task),
            )  # fmt: skip
        note(f"wrote {review}: open it in a browser")
    summary = list(_summarise(results, references, root))
    if as_json:
        print_json({"labels": str(output), "format": chosen.name, "photos": summary})
    else:
        _print_summary(summary)


def _as_photo(result: LabelledPhoto) -> AnnotatedPhoto:
    return AnnotatedPhoto(result.path, result.size, (result.annotation(),) if result.found else ())


def _as_reviewed(result: LabelledPhoto) -> Reviewed:
    annotation = result.annotation() if result.found else None
    return Reviewed(result.path, result.size, annotation, result.reference, result.same_kind)


def _summarise(results: list[LabelledPhoto], references: Annotations, root: Path) -> Iterator[dict[str, Any]]:
    """One entry for each photo."""
    for result in results:
        if result.error is not None:
            yield {"photo": str(result.path), "error": result.error}
            continue
        assert result.category is not None
        names = references.category(result.category).keypoints
        left = (
            {}
            if not result.found
            else {
                name: round(float(sure), 4)
                for name, v, sure in zip(names, result.annotation().visibility, result.probability, strict=True)
                if v == NOT_LABELLED
            }
        )
        yield {
            "photo": name_of(result.path, root),
            "category": result.category if result.found else None,
            "same_kind": round(result.same_kind, 4),
            "points": len(names) - len(left) if result.found else 0,
            "mean_probability": round(float(np.mean(result.probability)), 4) if len(names) else None,
            "not_labelled": left,
            "reference": str(result.reference) if result.reference is not None else None,
        }


def _print_summary(summary: list[dict[str, Any]]) -> None:
    """Counts of each category, then the photos that someone should look at."""
    rows = []
    fine = [entry for entry in summary if "error" not in entry]
    for category in dict.fromkeys(entry["category"] for entry in fine if entry["category"] is not None):
        of_it = [entry for entry in fine if entry["category"] == category]
        sure = [entry["mean_probability"] for entry in of_it if entry["mean_probability"] is not None]
        rows.append(
            [
                category,
                str(len(of_it)),
                str(sum(entry["points"] for entry in of_it)),
                str(sum(len(entry["not_labelled"]) for entry in of_it)),
                f"{np.mean(sure):.2f}" if sure else "-",
            ]
        )
    columns = ["category", "photos", "points labelled", "not labelled", "mean probability"]
    stdout.print(table("labels", columns, rows))
    others = [
        f"{entry['photo']}: not this object ({entry['same_kind']:.2f})" for entry in fine if not entry["category"]
    ]
    unsure = [
        f"{entry['photo']}: " + ", ".join(f"{name} {sure:.2f}" for name, sure in entry["not_labelled"].items())
        for entry in fine
        if entry["not_labelled"]
    ]
    for title, lines in (("not this object", others), ("points not labelled", unsure)):
        if lines:
            stdout.print(f"{title}: {len(lines)} photo{'s' * (len(lines) != 1)}", markup=False)
            for line in lines[:_LISTED]:
                stdout.print(Text(f"  {plain(line)}"), soft_wrap=True)
            if len(lines) > _LISTED:
                stdout.print(f"  ... and {len(lines) - _LISTED} more: --json lists them all")


def main() -> None:
    """Entry point of ``cats label`` by itself."""
    execute(app)


if __name__ == "__main__":
    main()
