"""SPair-71k (Min et al., 2019), as published: ``Layout``, ``PairAnnotation``, ``JPEGImages`` below one folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cats.core.errors import InputError
from cats.core.files import read_bytes
from cats.core.json_text import MAX_BYTES, parse_json
from cats.data.samples import PairDataset, Sample, normal_split, parse_box, require_entries, require_files

WHERE = "SPair-71k.tar.gz is at cvlab.postech.ac.kr/research/SPair-71k"

_SPLITS = {"train": "trn", "val": "val", "test": "test"}
_PUBLISHED = {"train": 53_340, "val": 5_384, "test": 12_234}  # pairs of the large lists
_FLAGS = {
    "viewpoint": "viewpoint_variation",
    "scale": "scale_variation",
    "truncation": "truncation",
    "occlusion": "occlusion",
}


class SPair(PairDataset):
    """Pairs of one official list; source is a, target is b. All 18 categories, boxes, names and difficulty flags.

    Args:
        root: folder with ``Layout``, ``PairAnnotation`` and ``JPEGImages``.
        split: ``train``, ``val`` or ``test`` (default).
        layout: ``large`` or ``small``; default: ``large`` where that list is there.
        incomplete: open it although files of pairs are missing.

    Raises:
        InputError: files are missing (named, with where to get them) or the list is malformed.
    """

    kind = "spair"
    splits = tuple(_SPLITS)

    def __init__(
        self, root: str | Path, split: str | None = None, *, layout: str | None = None, incomplete: bool = False
    ) -> None:
        root = Path(root)
        split = normal_split(split, tuple(_SPLITS), "test")
        folder = _SPLITS[split]
        entries = {"Layout": "pair lists", f"PairAnnotation/{folder}": "annotations", "JPEGImages": "images"}
        require_entries(root, entries, WHERE)
        lists = {
            name: root / "Layout" / name / f"{folder}.txt" for name in ((layout,) if layout else ("large", "small"))
        }
        chosen = next((name for name, path in lists.items() if path.is_file()), None)
        if chosen is None:
            tried = " or ".join(str(path.relative_to(root)) for path in lists.values())
            raise InputError(f"{root} lacks {tried}; {WHERE}")
        self._names = _read_names(lists[chosen])
        self._parts = [_parse_name(name, lists[chosen]) for name in self._names]
        self._folder = root / "PairAnnotation" / folder
        published = _PUBLISHED[split] if chosen == "large" else None
        super().__init__(root, split, f"SPair-71k {split} ({chosen}), {len(self._names)} pairs", published)
        if not incomplete:
            require_files(self, root, WHERE)

    def __len__(self) -> int:
        return len(self._names)

    def category_of(self, index: int) -> str:
        """From the pair's name."""
        return self._parts[index][2]

    def files_of(self, index: int) -> tuple[Path, ...]:
        """The pair's annotation and its images, whose names are in the pair's."""
        a, b, category = self._parts[index]
        images = self.root / "JPEGImages" / category
        return self._folder / f"{self._names[index]}.json", images / f"{a}.jpg", images / f"{b}.jpg"

    def __getitem__(self, index: int) -> Sample:
        path = self._folder / f"{self._names[index]}.json"
        values = parse_json(read_bytes(path, limit=MAX_BYTES, what="annotation"), f"broken annotation {path}: it")
        try:
            return _to_sample(values, self.root, path)
        except KeyError as error:
            raise InputError(f"broken annotation {path}: it lacks {error}") from error
        except (ValueError, TypeError, IndexError) as error:
            raise InputError(f"broken annotation {path}: {error}") from error


def _read_names(path: Path) -> list[str]:
    try:
        names = path.read_text("utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the list of pairs {path}: {error}") from error
    if not names:
        raise InputError(f"{path} lists no pairs; {WHERE}")
    return names


def _parse_name(name: str, path: Path) -> tuple[str, str, str]:
    """``000002-2008_001546-2008_005078:aeroplane`` -> image a, image b, category."""
    images, _, category = name.rpartition(":")
    parts = images.split("-")
    if len(parts) != 3 or not category:
        raise InputError(f"{path}: {name!r} is not of the form NUMBER-SOURCE-TARGET:CATEGORY; {WHERE}")
    return parts[1], parts[2], category


def _to_sample(values: dict[str, Any], root: Path, path: Path) -> Sample:
    folder = root / "JPEGImages" / values["category"]
    return Sample(
        image_a=folder / values["src_imname"],
        image_b=folder / values["trg_imname"],
        size_a=(int(values["src_imsize"][0]), int(values["src_imsize"][1])),
        size_b=(int(values["trg_imsize"][0]), int(values["trg_imsize"][1])),
        points_a=values["src_kps"],
        points_b=values["trg_kps"],
        box_a=parse_box(values["src_bndbox"], path.name),
        box_b=parse_box(values["trg_bndbox"], path.name),
        category=str(values["category"]),
        difficulty={name: int(values[key]) for name, key in _FLAGS.items()},
        keypoint_ids=tuple(str(name) for name in values["kps_ids"]),
        name=str(values["filename"]),
    )
