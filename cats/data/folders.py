"""Folders of photos: one flat collection, or one sub-folder a category. No keypoints, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cats.core.errors import InputError
from cats.core.photos import list_photos


@dataclass(frozen=True)
class PhotoFolder:
    """The photos below a folder, as :func:`cats.core.photos.list_photos` finds them.

    Attributes:
        paths: image files.
        skipped: number of files that are not images by their suffix.
    """

    root: Path
    paths: tuple[Path, ...]
    skipped: int = 0

    @classmethod
    def open(cls, root: str | Path) -> PhotoFolder:
        """List a folder; raises :class:`InputError` if it is missing or holds no image."""
        images, others = list_photos(root)
        if not images:
            raise InputError(f"{root} holds no photos (.jpg, .png, ...); {others} other files")
        return cls(Path(root), tuple(images), others)

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class CategoryFolder:
    """Photos sorted by category: ``root/CATEGORY/**/photo.jpg``.

    Attributes:
        categories: name -> image files, at least two each; names sorted.
        dropped: categories with fewer than two images, which cannot make a pair.
    """

    root: Path
    categories: dict[str, tuple[Path, ...]]
    dropped: tuple[str, ...] = ()

    @classmethod
    def open(cls, root: str | Path) -> CategoryFolder:
        """List a folder; raises :class:`InputError` without at least one category of two images."""
        photos = PhotoFolder.open(root)
        groups: dict[str, list[Path]] = {}
        for path in photos.paths:
            parts = path.relative_to(photos.root).parts
            if len(parts) > 1:
                groups.setdefault(parts[0], []).append(path)
        usable = {name: tuple(paths) for name, paths in sorted(groups.items()) if len(paths) > 1}
        if not usable:
            raise InputError(f"{root} has no sub-folder with two or more images; expected {root}/CATEGORY/photo.jpg")
        return cls(photos.root, usable, tuple(sorted(set(groups) - set(usable))))

    def __len__(self) -> int:
        return sum(len(paths) for paths in self.categories.values())
