"""Which commits took back recent work: of every commit, the lines that a later one of the next 25 removed again.

A commit made from an old copy looks like one that undoes its predecessors. What is listed is to be judged: a figure
measured again, or an idea given up, is no loss.

Run: python .ci/lost_lines.py [COMMIT] [--since COMMIT]
"""

from __future__ import annotations

import argparse
import subprocess
from collections import Counter
from dataclasses import dataclass

KINDS = ("*.py", "*.c", "*.h", "*.js", "*.css", "*.html", "*.md", "*.toml", "Makefile", ":!benchmarks/results")
WITHIN, LEAST, SHARE, SHORT = 25, 3, 0.2, 20  # commits, lines, share of a commit's lines, characters of a line


@dataclass(frozen=True)
class Change:
    """One commit: its subject, and the lines that it adds and removes, but for those that it moves."""

    subject: str
    added: dict[str, str]  # line -> file
    removed: set[str]


def git(*arguments: str) -> str:
    """Output of a git command."""
    return subprocess.run(["git", *arguments], capture_output=True, text=True, errors="replace", check=True).stdout


def read_change(commit: str) -> Change:
    """What one commit adds and removes."""
    plus: Counter[str] = Counter()
    minus: Counter[str] = Counter()
    where: dict[str, str] = {}
    file = ""
    for line in git("show", "--format=", "--unified=0", "-M", commit, "--", *KINDS).splitlines():
        text = line[1:].strip()
        if line.startswith("+++ "):
            file = line[6:]
        elif line.startswith("+") and len(text) > SHORT:
            plus[text] += 1
            where[text] = file
        elif line.startswith("-") and not line.startswith("--- ") and len(text) > SHORT:
            minus[text] += 1
    added = {text: where[text] for text in plus if text not in minus}
    return Change(git("log", "-1", "--format=%h %s", commit).strip(), added, set(minus) - set(plus))


def main() -> None:
    """Print the suspects, those that lost most first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit", nargs="?", default="HEAD")
    parser.add_argument("--since", help="judge only commits after this one")
    options = parser.parse_args()
    commits = git("rev-list", "--reverse", "--no-merges", options.commit).split()
    judged = set(git("rev-list", f"{options.since}..{options.commit}").split() if options.since else commits)
    first = next((index for index, commit in enumerate(commits) if commit in judged), len(commits))
    changes = [read_change(commit) for commit in commits[max(0, first - WITHIN) :]]
    present = set(git("grep", "-hI", "", options.commit, "--", *KINDS).splitlines())
    present = {line.strip() for line in present}
    found = []
    for index, change in enumerate(changes):
        if commits[max(0, first - WITHIN) + index] not in judged:
            continue
        for earlier in changes[max(0, index - WITHIN) : index]:
            lost = {text for text in earlier.added if text in change.removed and text not in present}
            share = len(lost) / max(1, len(earlier.added))
            if len(lost) >= LEAST and share >= SHARE:
                found.append((share, change.subject, earlier, lost))
    for share, subject, earlier, lost in sorted(found, key=lambda item: -item[0]):
        files = ", ".join(sorted({earlier.added[text] for text in lost}))
        print(f"{subject}\n  took back {len(lost)} of {len(earlier.added)} lines ({share:.0%}) of {earlier.subject}")
        print(f"  in {files}")
    print(f"{len(found)} of {len(judged)} commits to be judged")


if __name__ == "__main__":
    main()
