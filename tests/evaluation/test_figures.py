"""The paper's figures: what they show is what the model computes, which pairs they take, and what the files hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from datasets import make_image, make_spair
from PIL import Image

from cats.core.errors import InputError
from cats.core.pck import preset
from cats.core.protocols import OneByOne, PairFlow
from cats.data import open_dataset
from cats.data.samples import Sample

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from cats.core.images import preprocess  # noqa: E402
from cats.evaluation.figure_files import describe_colours, draw_figures, parse_pick, pick_pairs  # noqa: E402
from cats.evaluation.figures import (  # noqa: E402
    attention_maps,
    correlation_maps,
    draw_attention,
    draw_correlation,
)
from cats.evaluation.torch_matcher import TorchMatcher  # noqa: E402
from cats.evaluation.transfers import draw_transfers, transfer  # noqa: E402
from cats.model import CATs, CATsConfig  # noqa: E402


@pytest.fixture(scope="module")
def model() -> CATs:
    torch.manual_seed(2)
    config = CATsConfig(
        backbone="tf_efficientnet_lite0", hyperpixels=(2, 4), projection_dim=32, num_heads=3, mlp_ratio=1
    )
    return CATs(config).eval()


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    return open_dataset(f"spair:{make_spair(tmp_path / 'spair')}")[0]


def _inputs(model: CATs, sample: Sample) -> list[torch.Tensor]:
    pre = model.config.preprocessing
    return [torch.from_numpy(preprocess(sample.read(side), pre))[None] for side in "ab"]


def test_attention_is_that_of_the_pass_over_each_image(model: CATs, sample: Sample) -> None:
    with torch.no_grad():
        a, b = (model.features(image) for image in _inputs(model, sample))
        corr, appearance_a, appearance_b = model.cost_volume(a, b), model.project(a), model.project(b)
        block, decoder = model.decoder.blocks[0], model.decoder
        first = decoder.tokens(corr.transpose(-1, -2), appearance_a)
        between = decoder.proj(decoder.blocks(first)).transpose(-1, -2) + corr
        second = decoder.tokens(between, appearance_b)
        expected = [block.attn.weights(block.norm1(x.flatten(0, 1)))[0].numpy() for x in (first, second)]
    for side, weights in zip("ab", expected, strict=True):
        maps = attention_maps(model, sample.read("a"), sample.read("b"), side)
        assert maps.shape == (2, 3, 256, 256)
        np.testing.assert_allclose(maps, weights, atol=1e-6)
        np.testing.assert_allclose(maps.sum(axis=-1), 1, atol=1e-4)
    assert not model.decoder.blocks[0].attn._forward_hooks


def test_a_model_without_swapping_has_one_pass(sample: Sample) -> None:
    config = CATsConfig(
        backbone="tf_efficientnet_lite0", hyperpixels=(4,), projection_dim=32, num_heads=3, mlp_ratio=1, swapping=False
    )
    single = CATs(config)
    assert attention_maps(single, sample.read("a"), sample.read("b"), "b").shape == (1, 3, 256, 256)
    with pytest.raises(InputError, match="attends over image b only"):
        attention_maps(single, sample.read("a"), sample.read("b"), "a")


def test_correlation_maps_have_rows_of_a(model: CATs, sample: Sample) -> None:
    levels, refined = correlation_maps(model, sample.read("a"), sample.read("b"))
    assert (levels.shape, refined.shape) == ((2, 256, 256), (256, 256))
    with torch.no_grad():
        a, b = (model.features(image) for image in _inputs(model, sample))
        best = model.match_features(a, b)[0].argmax(dim=0).numpy()  # rows are b, columns a
    np.testing.assert_array_equal(refined.argmax(axis=1), best)
    same, _ = correlation_maps(model, sample.read("a"), sample.read("a"))
    np.testing.assert_allclose(same, same.transpose(0, 2, 1), atol=1e-5)


def _has_colour(path: Path, colour: str) -> bool:
    rgb = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)])
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return bool((np.abs(pixels - rgb).max(axis=-1) <= 2).sum() > 10)


class Still(OneByOne):
    """Leaves every point at its relative place: the cat's errors are 2.9, 0.2 and 19.6 of 90 pixels."""

    def match(self, a: Image.Image, b: Image.Image) -> PairFlow:
        return PairFlow(np.zeros((2, 16, 16), np.float32))


@pytest.mark.parametrize(("alpha", "right"), [(0.05, [True, True, False]), (0.25, [True] * 3), (0.001, [False] * 3)])
def test_transfers_are_green_where_right_and_red_where_wrong(
    sample: Sample, tmp_path: Path, alpha: float, right: list[bool]
) -> None:
    item = transfer(Still(), sample, preset("corrected", "spair"), alpha)
    assert item.right.tolist() == right
    np.testing.assert_allclose(item.estimates[0], [20.5 * 100 / 120 - 0.5, 30.5 * 60 / 80 - 0.5])
    np.testing.assert_array_equal(item.truth, sample.points_b)
    path = tmp_path / "transfers.png"
    draw_transfers([[item], [item]], ["still"], path)
    assert _has_colour(path, "#1a9641") == any(right)
    assert _has_colour(path, "#d7191c") == (not all(right))
    assert _has_colour(path, "#2b6cb0")


def test_transfers_of_the_authors_protocol_go_from_b_to_a(sample: Sample) -> None:
    item = transfer(Still(), sample, preset("cats2021", "spair"))
    assert (item.query.size, item.reference.size) == (sample.size_b, sample.size_a)
    np.testing.assert_array_equal(item.points, sample.points_b)
    assert item.title == f"{sample.name}, backwards"


class Shifted(OneByOne):
    """Every point at its relative place, and some cells further right."""

    def __init__(self, cells: float) -> None:
        self.cells = cells

    def match(self, a: Image.Image, b: Image.Image) -> PairFlow:
        flow = np.zeros((2, 16, 16), np.float32)
        flow[0] = self.cells
        return PairFlow(flow)


def test_models_stand_beside_each_other(sample: Sample, tmp_path: Path) -> None:
    protocol = preset("corrected", "spair")
    right, wrong = (transfer(matcher, sample, protocol, 0.25) for matcher in (Still(), Shifted(9)))
    assert (right.pck, wrong.pck) == (100.0, 0.0)
    draw_transfers([[right]], ["one"], tmp_path / "one.png", describe_colours(protocol, 0.25))
    draw_transfers([[right, wrong]], ["one", "other"], tmp_path / "two.png", describe_colours(protocol, 0.25))
    one, two = (Image.open(tmp_path / f"{name}.png") for name in ("one", "two"))
    assert two.width > one.width  # a column more
    assert not _has_colour(tmp_path / "one.png", "#d7191c")
    assert _has_colour(tmp_path / "two.png", "#d7191c")
    assert _has_colour(tmp_path / "two.png", "#1a9641")
    assert describe_colours(protocol, 0.25).startswith("green: right, within 0.25 x larger side of the box in b")


def test_pairs_are_picked(tmp_path: Path) -> None:
    make_image(tmp_path / "a.png", (160, 160))
    # At 0.1 of 100 pixels a shift of 20 is wrong where the keypoints stand still, and right where they move by as much.
    moves = (0, 20, 0, 20, 20)
    rows = [f'a.png,a.png,"10,10,{10 + x},10;110,110,{110 + x},110"\n' for x in moves]
    (tmp_path / "pairs.csv").write_text("a,b,points\n" + "".join(rows) + "a.png,a.png,\n")
    dataset = open_dataset(f"pairs:{tmp_path / 'pairs.csv'}")
    protocol = preset("corrected", "pairs")
    names = lambda chosen: [float(x.points_b[0, 0]) for x in chosen]  # noqa: E731

    def pick(how: str, count: int, **matchers: OneByOne) -> list[Sample]:
        return pick_pairs(dataset, parse_pick(how), count, matchers or {"one": Still()}, protocol, 0.1)

    assert names(pick("2,1", 4)) == [30, 10]
    assert len(pick("even", 3)) == 3
    assert len(pick("random", 9)) == 5  # all that have keypoints
    assert names(pick("random:4", 5)) == names(pick("random:4", 5))
    assert len({tuple(names(pick(f"random:{seed}", 5))) for seed in range(8)}) > 1
    # Of a model that stands still and one that is always wrong, the pairs that stand still part them.
    assert names(pick("differ", 2, one=Still(), other=Shifted(9))) == [10, 10]
    with pytest.raises(InputError, match="need two models"):
        pick("differ", 2)
    with pytest.raises(InputError, match=r"there is no pair 7: .* has 6"):
        pick("7", 1)
    with pytest.raises(InputError, match="no keypoints to draw"):
        pick("6", 1)
    for text in ("0", "1,", "random:x", "best"):
        with pytest.raises(InputError, match=r"is not even, differ, random"):
            parse_pick(text)


def test_files_of_several_models_and_formats(model: CATs, sample: Sample, tmp_path: Path) -> None:
    matchers = {"still": Still(), "tiny": TorchMatcher(model)}
    protocol = preset("corrected", "spair")
    files = draw_figures(matchers, [sample], [protocol], 0.1, tmp_path, formats=("png", "pdf"))
    assert {path.name for path in files} == {
        f"{stem}.{suffix}"
        for stem in ("transfers-corrected", "tiny-attention-1", "tiny-correlation-1")
        for suffix in ("png", "pdf")
    }
    assert {path.read_bytes()[:4] for path in files} == {b"%PDF", b"\x89PNG"}
    only = draw_figures({"tiny": TorchMatcher(model)}, [sample], [protocol], 0.1, tmp_path, figures=["correlation"])
    assert [path.name for path in only] == ["correlation-1.png"]


def test_maps_are_drawn(model: CATs, sample: Sample, tmp_path: Path) -> None:
    a, b = sample.read("a"), sample.read("b")
    draw_attention(model, a, b, (20, 30), tmp_path / "attention.png")
    draw_correlation(model, a, b, (20, 30), tmp_path / "correlation.svg", truth=(15, 20))
    attention = Image.open(tmp_path / "attention.png")
    assert attention.width > attention.height  # 3 heads beside each other, 2 levels below
    assert np.asarray(attention.convert("L")).std() > 10
    assert (tmp_path / "correlation.svg").stat().st_size > 10_000


def test_figures_refuse_what_they_cannot_draw(model: CATs, sample: Sample, tmp_path: Path) -> None:
    a, b = sample.read("a"), sample.read("b")
    with pytest.raises(InputError, match=r"point \(200, 3\) lies outside the image, which has 120x80"):
        draw_correlation(model, a, b, (200, 3), tmp_path / "x.png")
    with pytest.raises(InputError, match=r"cannot write figure .*x.nothing.*use .png"):
        draw_attention(model, a, b, (20, 30), tmp_path / "x.nothing")
    with pytest.raises(InputError, match="cannot write"):
        draw_attention(model, a, b, (20, 30), tmp_path / "none" / "x.png")
    with pytest.raises(InputError, match="no pairs to draw"):
        draw_transfers([], ["one"], tmp_path / "x.png")
    bare = Sample(sample.image_a, sample.image_b, sample.size_a, sample.size_b)
    with pytest.raises(InputError, match="has no keypoints to draw"):
        transfer(Still(), bare, preset("corrected"))
    assert list(tmp_path.glob("x*")) == []
