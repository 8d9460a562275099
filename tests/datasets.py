"""Small copies of the published layouts of every data set, with made-up pictures and all fields filled."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cats.data.flow_files import write_flow


def make_image(path: Path, size: tuple[int, int], seed: int = 0) -> None:
    """A smooth random picture of ``size`` (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(path)


SPAIR_PAIR: dict[str, Any] = {
    "pair_id": 7,
    "filename": "000007-2008_000001-2008_000002:cat",
    "src_imname": "2008_000001.jpg",
    "trg_imname": "2008_000002.jpg",
    "src_imsize": [120, 80, 3],
    "trg_imsize": [100, 60, 3],
    "src_bndbox": [10, 12, 90, 70],
    "trg_bndbox": [5, 6, 95, 50],
    "category": "cat",
    "src_pose": "Left",
    "trg_pose": "Frontal",
    "src_kps": [[20, 30], [60, 40], [85, 65]],
    "trg_kps": [[15, 20], [50, 30], [90, 45]],
    "kps_ids": ["0", "3", "8"],
    "mirror": 0,
    "viewpoint_variation": 2,
    "scale_variation": 1,
    "truncation": 3,
    "occlusion": 0,
}


def make_spair(root: Path, splits: tuple[str, ...] = ("test",), **changes: Any) -> Path:
    """Two pairs (cat, dog) in the lists of layout ``large``; ``changes`` go into the cat's annotation."""
    dog = {**SPAIR_PAIR, "filename": "000008-2008_000003-2008_000001:dog", "category": "dog"}
    dog |= {"src_imname": "2008_000003.jpg", "trg_imname": "2008_000001.jpg"}
    dog |= {"src_imsize": [100, 60, 3], "trg_imsize": [120, 80, 3], "viewpoint_variation": 0}
    dog |= {"src_kps": [[20, 30], [60, 40], [85, 55]]}
    (root / "Layout" / "large").mkdir(parents=True)
    for split in splits:
        for pair in ({**SPAIR_PAIR, **changes}, dog):
            path = root / "PairAnnotation" / split / f"{pair['filename']}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(pair))
        (root / "Layout" / "large" / f"{split}.txt").write_text(f"{SPAIR_PAIR['filename']}\n{dog['filename']}\n")
    make_image(root / "JPEGImages" / "cat" / "2008_000001.jpg", (120, 80), 1)
    make_image(root / "JPEGImages" / "cat" / "2008_000002.jpg", (100, 60), 2)
    make_image(root / "JPEGImages" / "dog" / "2008_000003.jpg", (100, 60), 3)
    make_image(root / "JPEGImages" / "dog" / "2008_000001.jpg", (120, 80), 4)
    return root


def make_spair_20(root: Path) -> Path:
    """20 pairs in each of the lists ``trn``, ``val`` and ``test``: five categories of four photos, 3 to 9 keypoints."""
    rng = np.random.default_rng(20)
    (root / "Layout" / "large").mkdir(parents=True)
    lists: dict[str, list[str]] = {"trn": [], "val": [], "test": []}
    number = 0
    for kind, category in enumerate(("aeroplane", "bird", "cat", "dog", "train")):
        sizes = [tuple(int(side) for side in rng.integers(60, 140, 2)) for _ in range(4)]
        names = [f"2009_00{kind}{photo:03d}" for photo in range(4)]
        for photo, (name, size) in enumerate(zip(names, sizes, strict=True)):
            make_image(root / "JPEGImages" / category / f"{name}.jpg", size, 10 * kind + photo)
        pairs = [(a, b) for a in range(4) for b in range(4) if a != b]
        for place, (a, b) in enumerate(pairs):
            split = list(lists)[place % 3]
            number += 1
            count = int(rng.integers(3, 10))
            points = [np.floor(rng.uniform(2, np.array(sizes[photo]) - 3, (count, 2))) for photo in (a, b)]
            boxes = [[*at.min(0) - 2, *at.max(0) + 2] for at in points]
            document = {
                **SPAIR_PAIR, "pair_id": number, "filename": f"{number:06d}-{names[a]}-{names[b]}:{category}",
                "category": category, "kps_ids": [str(k) for k in range(count)],
                "src_imname": f"{names[a]}.jpg", "src_imsize": [*sizes[a], 3], "src_bndbox": [int(x) for x in boxes[0]],
                "trg_imname": f"{names[b]}.jpg", "trg_imsize": [*sizes[b], 3], "trg_bndbox": [int(x) for x in boxes[1]],
                "src_kps": points[0].astype(int).tolist(), "trg_kps": points[1].astype(int).tolist(),
            }  # fmt: skip
            lists[split].append(str(document["filename"]))
            path = root / "PairAnnotation" / split / f"{document['filename']}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(document))
    for split, names in lists.items():
        (root / "Layout" / "large" / f"{split}.txt").write_text("\n".join(names) + "\n")
    return root


WILLOW_A = np.array([[10.5 + 8 * k, 12 + 3 * k] for k in range(10)])
WILLOW_B = np.array([[5 + 7 * k, 50.25 - 4 * k] for k in range(10)])


def make_willow(root: Path, prefix: str = "PF-dataset/") -> Path:
    """Two pairs of ``duck(S)`` and ``car(G)``; images lie without the listed folder unless ``root/prefix`` exists."""
    folder = root / prefix if (root / prefix).is_dir() else root
    names = [f"XA{k}" for k in range(1, 11)] + [f"YA{k}" for k in range(1, 11)]
    names += [f"XB{k}" for k in range(1, 11)] + [f"YB{k}" for k in range(1, 11)]
    numbers = [*WILLOW_A.T.ravel(), *WILLOW_B.T.ravel()]
    root.mkdir(exist_ok=True)
    with open(root / "test_pairs.csv", "w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["imageA", "imageB", *names])
        for category in ("duck(S)", "car(G)"):
            writer.writerow([f"{prefix}{category}/x_1.png", f"{prefix}{category}/x_2.png", *numbers])
            make_image(folder / category / "x_1.png", (120, 80), 1)
            make_image(folder / category / "x_2.png", (90, 64), 2)
    return root


PASCAL_KEYPOINTS = {
    "2008_000001": [[10.0, 20.0], [np.nan, np.nan], [60.5, 40.0], [30.0, 70.0]],
    "2008_000002": [[12.0, 8.0], [33.0, 40.0], [80.25, 50.0], [np.nan, np.nan]],
}


def make_pfpascal(root: Path, nested: bool = True) -> Path:
    """One cat pair in each list, the training list twice (plain and flipped); keypoints 0 and 2 are common."""
    from scipy.io import savemat

    data = root / "PF-dataset-PASCAL" if nested else root
    sizes = {"2008_000001": (120, 80), "2008_000002": (100, 60)}
    (data / "Annotations" / "cat").mkdir(parents=True)
    for name, size in sizes.items():
        make_image(data / "JPEGImages" / f"{name}.jpg", size, seed=int(name[-1]))
        values = {"kps": np.array(PASCAL_KEYPOINTS[name]), "bbox": [[2.0, 3.0, size[0] - 4.0, size[1] - 5.0]]}
        savemat(data / "Annotations" / "cat" / f"{name}.mat", values)
    pair = ",".join(f"PF-dataset-PASCAL/JPEGImages/{name}.jpg" for name in sizes)
    lines = f"{pair},8,0\n{pair},8,1\n"
    (root / "train_pairs.csv").write_text(f"source_image,target_image,class,flip\n{lines}")
    (root / "val_pairs.csv").write_text(f"source_image,target_image,class,flip\n{pair},8,0\n")
    (root / "test_pairs.csv").write_text(
        f"source_image,target_image,class,XA,YA,XB,YB\n{pair},8,10;60.5,20;40,12;80.25,8;50\n"
    )
    return root


def make_tss(root: Path, flip: str = "0") -> Path:
    """One pair whose object (a rectangle) moves by (4, -2) pixels from image 1 to image 2."""
    folder = root / "PASCAL" / "boat_1_2"
    make_image(folder / "image1.png", (64, 48), 1)
    make_image(folder / "image2.png", (64, 48), 2)
    for number, (dx, dy) in ((1, (4, -2)), (2, (-4, 2))):
        mask = np.zeros((48, 64), bool)
        mask[10:30, 12:40] = True
        if number == 2:
            mask = np.roll(mask, (-2, 4), (0, 1))
        flow = np.broadcast_to(np.float32([dx, dy]), (48, 64, 2))
        write_flow(folder / f"flow{number}.flo", flow, mask)
        Image.fromarray((mask * 255).astype(np.uint8)).save(folder / f"mask{number}.png")
    (folder / "flip_gt.txt").write_text(flip)
    return root
