"""What a command will write, checked before its work: the one place that decides about outputs."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from cats.core.errors import InputError
from cats.core.files import check_destination
from cats.core.folders import check_folder
from cats.core.photos import PHOTO_SUFFIXES, list_photos


@dataclass
class OutputPlan:
    """The files that a command reads and those that it will write; :meth:`check` before the work.

    ::

        plan = OutputPlan(force=force)
        plan.reads(model, images, pairs)
        plan.writes(output, suffixes=(".onnx",))
        plan.check()

    Attributes:
        force: replace existing files, results of an earlier run.
    """

    force: bool = False
    _reads: list[Path] = field(default_factory=list)
    _writes: list[tuple[Path, tuple[str, ...] | None, bool]] = field(default_factory=list)
    _folders: list[tuple[Path, str | None]] = field(default_factory=list)

    def reads(self, *paths: str | Path | None) -> OutputPlan:
        """Files and folders that are read; of a folder, the photos below it."""
        self._reads += [Path(path) for path in paths if path is not None]
        return self

    def reads_data(self, *specs: str | None) -> OutputPlan:
        """What data sets ``KIND:DIR`` are read from."""
        return self.reads(*(spec.partition(":")[2] or spec for spec in specs if spec is not None))

    def writes(
        self, *paths: str | Path | None, suffixes: tuple[str, ...] | None = None, updates: bool = False
    ) -> OutputPlan:
        """Files that are written.

        Args:
            suffixes: one of which the names must end in; None takes any.
            updates: the command goes on with an existing one, as with a cache, and needs no ``force`` for that.
        """
        self._writes += [(Path(path), suffixes, updates) for path in paths if path is not None]
        return self

    def writes_folder(self, folder: str | Path | None, mark: str | None) -> OutputPlan:
        """A folder that is written as a whole, with :func:`cats.core.folders.replaced_folder`.

        Args:
            mark: a file that every folder of the same command holds; None where none is ever replaced.
        """
        if folder is not None:
            self._folders.append((Path(folder), mark))
        return self

    def check(self) -> None:
        """Raise :class:`InputError` for an output that cannot be written, that is an input, another output, a device,
        a pipe, a folder or a photo of a folder that is read, or that exists while ``force`` is off; for a folder as
        :func:`cats.core.folders.check_folder`."""
        seen: dict[Path, Path] = {}
        for folder, mark in self._folders:
            check_folder(folder, mark, reads=self._reads, force=self.force)
            place = Path(os.path.realpath(folder))
            if place in seen:
                raise InputError(f"{folder} is the name of two outputs: give each its own")
            seen[place] = folder
        for path, suffixes, updates in self._writes:
            place = check_destination(path, suffixes)
            if place in seen:
                raise InputError(f"{path} is the name of two outputs: give each its own")
            seen[place] = path
            self._check_inputs(path, place)
            if place.exists() and not updates and not self.force:
                raise InputError(f"{path} exists already: give --force to replace it, or another name")

    def _check_inputs(self, path: Path, place: Path) -> None:
        for read in self._reads:
            if read.is_dir():
                if place.suffix.lower() in PHOTO_SUFFIXES and _is_below(place, read):
                    raise InputError(f"cannot write {path}: the photos of {read} are read; give a name outside of it")
            elif _is_same(place, read):
                raise InputError(f"cannot write {path}: it is read ({read}); give another name")


def make_folder(folder: Path) -> None:
    """Make an output folder where it is missing; raises :class:`InputError` where files cannot be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot make the folder {folder}: {getattr(error, 'strerror', None) or error}") from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"cannot write in the folder {folder}: no permission")


def _is_same(place: Path, read: Path) -> bool:
    """Whether both are one file, by name or as hard links."""
    try:
        return place == Path(os.path.realpath(read)) or (place.exists() and place.samefile(read))
    except (OSError, ValueError):
        return False


def _is_below(place: Path, folder: Path) -> bool:
    if place.is_relative_to(Path(os.path.realpath(folder))):
        return True
    return place.exists() and any(_is_same(place, photo) for photo in list_photos(folder)[0])  # through links
