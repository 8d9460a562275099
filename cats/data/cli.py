"""``cats data check``: whether a data set is whole before a long run begins."""

from __future__ import annotations

from typing import Annotated

import typer

from cats.core.console import execute, new_app, note, print_json, stdout, table
from cats.core.images import quiet_pillow
from cats.data import KINDS
from cats.data.check import FOLDERS, Counts, ListReport, check_dataset

app = new_app(extra="train", no_args_is_help=True)

LINES = 20
"""Problems of a list that are printed without ``--all``."""

EXAMPLES = """
Examples:

- `cats data check spair:SPair-71k` every file of all three lists

- `cats data check pfpascal:PF-PASCAL --split train --categories` with counts of each category

- `cats data check pairs:mine.csv --all --json > check.json` every problem, for a program

- `cats data check categories:photos/` photos without keypoints
"""


@app.callback()
def data() -> None:
    """Look at data sets."""


@app.command(epilog=EXAMPLES)
def check(
    spec: Annotated[
        str,
        typer.Argument(
            help=f"The data set; KIND is {', '.join((*KINDS, *FOLDERS))}.", metavar="KIND:DIR", show_default=False
        ),
    ],
    split: Annotated[
        str | None,
        typer.Option(help="Only train, val or test. Default: all.", metavar="NAME", show_default=False),
    ] = None,
    categories: Annotated[bool, typer.Option("--categories", help="Also the counts of each category.")] = False,
    everything: Annotated[bool, typer.Option("--all", help=f"Name every problem, not {LINES} of a list.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")] = False,
) -> None:
    """Check that all files of a data set are there and fit: counts, missing files, photos that cannot be decoded,
    broken annotations, keypoints outside their image. Exit status 1 where something is missing or broken."""
    quiet_pillow()
    reports = check_dataset(spec, split)
    broken = any(report.problems for report in reports)
    if as_json:
        print_json({"data": spec, "whole": not broken, "lists": [report.to_dict() for report in reports]})
    else:
        show(reports, categories, None if everything else LINES)
        note(f"{spec} is {'not whole' if broken else 'whole: all files that its lists name are there and can be read'}")
    if broken:
        raise typer.Exit(1)


def show(reports: list[ListReport], categories: bool, lines: int | None) -> None:
    """Print the counts on stdout, then what was found in each list."""
    columns = ["list", "pairs", "published", "photos", "keypoints", "outside", "problems"]
    rows = []
    for report in reports:
        published = "" if report.published is None else str(report.published)
        rows.append([report.split or "all", *_cells(report.total, published), str(len(report.problems))])
        if categories:
            rows += [[f"  {name}", *_cells(counts, ""), ""] for name, counts in report.categories.items()]
    stdout.print(table("", columns, rows))
    for report in reports:
        where = f"{report.split}: " if report.split else ""
        for text in report.notes:
            note(f"{where}{text}")
        for text in report.problems[:lines]:
            note(f"warning: {where}{text}")
        left = len(report.problems) - len(report.problems[:lines])
        if left:
            note(f"warning: {where}{left} more; --all names them")


def _cells(counts: Counts, published: str) -> list[str]:
    return [str(counts.pairs), published, str(counts.photos), str(counts.keypoints), str(counts.outside)]


def main() -> None:
    """Entry point of ``python -m cats.data.cli``."""
    execute(app)


if __name__ == "__main__":
    main()
