"""Pictures of cats-tiny, the same backbone's zero-started model and COTR beside each other, for docs/pictures.

``models-beside-each-other.jpg`` shows the shipped photos with seven points set by hand, both ways.
``models-beside-each-other-willow.png`` shows pairs of PF-WILLOW drawn at random, one of each category; its photos are
not this project's to pass on, so that their points lie on empty panels of the photos' shape. COTR is a checkpoint of
``python -m cats.benchmarks.studies.ablations --objective warps --rows cotr --save models``.

Usage: python -m cats.benchmarks.studies.models_picture COTR.pt (PF-WILLOW from $CATS_SHARED, default ../shared)
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from cats.benchmarks.record import REPOSITORY
from cats.benchmarks.ship_tiny import ASSETS, DATA
from cats.checkpoints import load_checkpoint
from cats.core.images import image_size
from cats.core.pck import preset
from cats.data import open_dataset
from cats.data.samples import Sample
from cats.evaluation.figure_files import describe_colours
from cats.evaluation.torch_matcher import TorchMatcher
from cats.evaluation.transfers import Transfer, draw_transfers, transfer
from cats.model import CATs, CATsConfig

PICTURES = REPOSITORY / "docs" / "pictures"
# Eyes, tip of the nose, mouth, chin, shoulders: left and right as the viewer sees them.
ASTRONAUT = np.array([(203, 101), (247, 103), (225, 126), (224, 146), (224, 175), (115, 300), (335, 300)], float)
HOPPER = np.array([(222, 189), (304, 187), (267, 230), (267, 273), (265, 331), (95, 382), (440, 378)], float)
_WIDTH = 1030  # pixels of the picture with photos


def zero_started() -> CATs:
    """cats-tiny's backbone, whose nearest neighbours are what an aggregator of zeros hands through."""
    tiny = load_checkpoint(ASSETS / "cats-tiny.pt").model
    model = CATs(dataclasses.replace(tiny.config, temperature=CATsConfig.temperature), zero_start=True)
    model.feature_extraction.load_state_dict(tiny.feature_extraction.state_dict())
    return model


def shipped_pairs() -> list[Sample]:
    """The two shipped photos, both ways."""
    photos = [(ASSETS / "astronaut.jpg", ASTRONAUT), (ASSETS / "grace_hopper.jpg", HOPPER)]
    samples = []
    for (a, points_a), (b, points_b) in (photos, photos[::-1]):
        name = f"{a.name} -> {b.name}"
        samples.append(Sample(a, b, image_size(a), image_size(b), points_a=points_a, points_b=points_b, name=name))
    return samples


def willow_pairs(seed: int) -> list[Sample]:
    """One pair of each category of PF-WILLOW, at random."""
    dataset = open_dataset(f"willow:{DATA / 'PF-WILLOW'}")
    chosen: dict[str | None, Sample] = {}
    for index in np.random.default_rng(seed).permutation(len(dataset)):
        sample = dataset[int(index)]
        chosen.setdefault(sample.category, sample)
    return [chosen[name] for name in sorted(chosen, key=str)]


def without_photos(item: Transfer) -> Transfer:
    """The same on grey panels of the photos' shape."""
    query, reference = (Image.new("RGB", image.size, (224, 224, 224)) for image in (item.query, item.reference))
    return dataclasses.replace(item, query=query, reference=reference)


def main() -> None:
    """Draw both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cotr", type=Path, help="checkpoint of COTR")
    parser.add_argument("--seed", type=int, default=1, help="of the pairs of PF-WILLOW (default: 1)")
    options = parser.parse_args()
    matchers = {
        "cats-tiny": TorchMatcher.load(ASSETS / "cats-tiny.pt"),
        "zero-started": TorchMatcher(zero_started()),
        "COTR": TorchMatcher.load(options.cotr),
    }
    protocol = preset("corrected", "willow")
    caption = describe_colours(protocol, 0.1)

    def rows(samples: list[Sample]) -> list[list[Transfer]]:
        return [[transfer(matcher, sample, protocol) for matcher in matchers.values()] for sample in samples]

    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "draft.png"
        draw_transfers(rows(shipped_pairs()), list(matchers), draft, caption)
        with Image.open(draft) as image:
            height = round(image.height * _WIDTH / image.width)
            image.convert("RGB").resize((_WIDTH, height), Image.Resampling.LANCZOS).save(
                PICTURES / "models-beside-each-other.jpg", quality=88
            )
    bare = [[without_photos(item) for item in row] for row in rows(willow_pairs(options.seed))]
    draw_transfers(bare, list(matchers), PICTURES / "models-beside-each-other-willow.png", caption)


if __name__ == "__main__":
    main()
