"""TSS (Taniai et al., CVPR 2016): pairs with dense ground-truth flow of the foreground, for evaluation."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from cats.core.errors import InputError
from cats.core.images import image_size, read_mask
from cats.data.flow_files import read_flow
from cats.data.samples import DenseTruth, PairDataset, Sample, normal_split, require_files

WHERE = "TSS_CVPR2016.zip is at taniai.space/projects/cvpr16_dccs"

_PUBLISHED = 800  # 400 pairs in both directions
_FILES = ("image1.png", "image2.png", "flow1.flo", "flow2.flo", "mask1.png", "mask2.png", "flip_gt.txt")


class TSS(PairDataset):
    """Every pair below the folder in both directions: image1 -> image2 by ``flow1.flo``, then image2 -> image1 by
    ``flow2.flo``. Categories are FG3DCar, JODS and PASCAL, no keypoints, no boxes.

    Where ``flip_gt.txt`` is 1, the objects face each other: the ground truth is for the second image mirrored.

    Args:
        root: the unpacked folder, one of its three parts, or a single pair.
        split: ``test`` or ``None``.
        incomplete: open it although files of pairs are missing.

    Raises:
        InputError: files are missing (named, with where to get them).
    """

    kind = "tss"

    def __init__(self, root: str | Path, split: str | None = None, *, incomplete: bool = False) -> None:
        root = Path(root)
        normal_split(split, ("test",), "test")
        if not root.is_dir():
            raise InputError(f"{root} is not a folder; {WHERE}")
        self._folders = sorted({path.parent for name in ("image1.png", "flow1.flo") for path in root.rglob(name)})
        if not self._folders:
            raise InputError(f"{root} holds no pair of TSS (folders with image1.png, flow1.flo, ...); {WHERE}")
        super().__init__(root, "test", f"TSS, {len(self._folders)} pairs in both directions", _PUBLISHED)
        if not incomplete:
            require_files(self, root, WHERE)

    def __len__(self) -> int:
        return 2 * len(self._folders)

    def category_of(self, index: int) -> str:
        """Name of the part."""
        return self._folders[index // 2].resolve().parent.name

    def files_of(self, index: int) -> tuple[Path, ...]:
        """What the folder of both directions must hold, the images last and in the pair's direction."""
        folder = self._folders[index // 2]
        images = _FILES[:2] if index % 2 == 0 else _FILES[1::-1]
        return tuple(folder / name for name in (*_FILES[2:], *images))

    def __getitem__(self, index: int) -> Sample:
        folder, (a, b) = self._folders[index // 2], ((1, 2), (2, 1))[index % 2]
        image_a, image_b = folder / f"image{a}.png", folder / f"image{b}.png"
        size_a = image_size(image_a)
        name = f"{self.category_of(index)}/{folder.name} {a} -> {b}"
        return Sample(
            image_a=image_a,
            image_b=image_b,
            size_a=size_a,
            size_b=image_size(image_b),
            category=self.category_of(index),
            mirror_b=_read_flip(folder / "flip_gt.txt"),
            dense=partial(_read_truth, folder / f"flow{a}.flo", folder / f"mask{a}.png", size_a),
            name=name,
        )


def _read_flip(path: Path) -> bool:
    text = path.read_text("utf-8", errors="replace").strip()
    if text not in ("0", "1"):
        raise InputError(f"broken annotation {path}: {text[:20]!r} is neither 0 nor 1")
    return text == "1"


def _read_truth(flow_file: Path, mask_file: Path, size: tuple[int, int]) -> DenseTruth:
    flow, known = read_flow(flow_file)
    mask = read_mask(mask_file)
    for what, array in ((flow_file, known), (mask_file, mask)):
        if array.shape != (size[1], size[0]):
            raise InputError(f"{what} has {array.shape[1]}x{array.shape[0]} pixels, its image {size[0]}x{size[1]}")
    valid = known & mask
    if not valid.any():
        raise InputError(f"{flow_file} has no known flow on the foreground of {mask_file.name}")
    return DenseTruth(flow, valid)
