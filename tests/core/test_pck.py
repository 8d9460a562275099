"""PCK against tables computed by hand: every protocol, threshold, reduction and the authors' quirks."""

from __future__ import annotations

import numpy as np
import pytest

from cats.core.errors import InputError
from cats.core.pck import (
    MODEL_FRAME,
    PairKeypoints,
    PairScore,
    Protocol,
    pck,
    pck_by_group,
    pck_table,
    preset,
    score_flow,
    score_points,
)

ZERO_FLOW = np.zeros((2, 16, 16))
# Sizes that are powers of two and coordinates with few binary digits make every number below exact.
PAIR = PairKeypoints(
    points_a=[[10, 20], [100, 50], [300.75, 100.875]],
    points_b=[[10, 50.5], [124, 132.5], [300.75, 202.25]],
    size_a=(512, 256),
    size_b=(512, 512),
    box_a=(0, 0, 200, 100),
    box_b=(0, 40, 100, 440),
)
# a -> b, original pixels, zero flow: (x, y) goes to (x, 2 y + 0.5), so the estimates are (10, 40.5), (100, 100.5),
# (300.75, 202.25), and the errors 10, hypot(24, 32) = 40 and 0.
# b -> a, model frame: the queries (5, 25.25), (62, 66.25), (150.375, 101.125) are truncated and stay where they are;
# the truth is (5, 20), (50, 50), (150.375, 100.875), the errors 5, hypot(12, 16) = 20 and hypot(3, 1) / 8.


def test_errors_in_original_pixels() -> None:
    score = score_flow(PAIR, ZERO_FLOW, Protocol())
    assert score.distances.tolist() == [10, 40, 0]


def test_errors_as_the_authors_measure_them() -> None:
    score = score_flow(PAIR, ZERO_FLOW, preset("cats2021"))
    assert score.distances.tolist() == [5, 20, np.hypot(3, 1) / 8]


def test_without_truncation_the_third_error_is_a_quarter_pixel() -> None:
    score = score_flow(PAIR, ZERO_FLOW, preset("cats2021").with_(rounding="none"))
    assert score.distances.tolist() == pytest.approx([5.25, np.hypot(12, 16.25), 0.25], abs=1e-12)


@pytest.mark.parametrize(
    ("protocol", "threshold"),
    [
        (Protocol(threshold="keypoints"), 290.75),  # x: 300.75 - 10
        (Protocol(threshold="keypoints-padded"), 301.75),  # x: 300.75 - (-1)
        (Protocol(threshold="box"), 400),  # y: 440 - 40
        (Protocol(threshold="image"), 512),
        (Protocol(threshold="box", direction="b->a"), 200),
        (Protocol(threshold="keypoints", direction="b->a"), 290.75),
        (Protocol(threshold="keypoints", frame="model"), 145.375),  # half of 290.75
        (Protocol(threshold="keypoints-padded", frame="model"), 151.375),  # half of 300.75, + 1
        (Protocol(threshold="keypoints-padded", frame="model", direction="b->a"), 151.375),
        (Protocol(threshold="box", frame="model"), 200),  # y: 400 / 2
        (Protocol(threshold="box", frame="model", direction="b->a"), 100),  # x: 200 / 2, y: 100
        (Protocol(threshold="image", frame="model"), 256),
    ],
)
def test_thresholds(protocol: Protocol, threshold: float) -> None:
    assert score_flow(PAIR, ZERO_FLOW, protocol).threshold == threshold


@pytest.mark.parametrize(
    ("name", "kind", "alpha", "right"),
    [
        ("corrected", "willow", 0.034, [False, False, True]),  # 9.89 px
        ("corrected", "willow", 0.1, [True, False, True]),  # 29.1 px
        ("corrected", "spair", 0.025, [True, False, True]),  # exactly 10 px: the bound belongs to right
        ("corrected", "spair", 0.1, [True, True, True]),  # exactly 40 px
        ("per-point", "willow", 0.1, [True, False, True]),
        ("cats2021", "spair", 0.05, [True, False, True]),  # exactly 5 px
        ("cats2021", "spair", 0.2, [True, True, True]),  # exactly 20 px
        ("cats2021", "pfpascal", 0.05, [True, False, True]),  # 12.8 px
        ("cats2021", "pfpascal", 0.078125, [True, True, True]),  # exactly 20 px
        ("cats2021", "willow", 0.135, [True, True, True]),  # 20.4 px, only because of the padding: 19.6 without
    ],
)
def test_right_and_wrong(name: str, kind: str, alpha: float, right: list[bool]) -> None:
    score = score_flow(PAIR, ZERO_FLOW, preset(name, kind))
    assert score.correct(alpha).tolist() == right
    assert score.pck(alpha) == pytest.approx(100 * sum(right) / 3)


def test_padding_quirk_changes_the_verdict() -> None:
    padded = score_flow(PAIR, ZERO_FLOW, preset("cats2021", "willow"))
    unpadded = score_flow(PAIR, ZERO_FLOW, preset("cats2021", "willow").with_(threshold="keypoints"))
    assert (padded.pck(0.135), unpadded.pck(0.135)) == (100, pytest.approx(200 / 3))


def test_queries_are_clamped_to_the_frame() -> None:
    pair = PairKeypoints([[-3, 600]], [[0, 0]], (512, 512), (512, 512), box_b=(0, 0, 1, 1))
    score = score_flow(pair, ZERO_FLOW, Protocol("x", "a->b", "model", "box", "pair", "truncate"))
    assert score.distances.tolist() == [255]  # (-1.5, 300) -> (0, 255); the truth is (0, 0)


def test_reductions() -> None:
    scores = [
        PairScore(np.array([0.0, 0.0, 0.0, 9.0]), 10),
        PairScore(np.array([9.0]), 10),
        PairScore(np.zeros(0), np.nan),
    ]
    assert pck(scores, 0.1, "pair") == 37.5  # (75 + 0) / 2
    assert pck(scores, 0.1, "point") == 60  # 3 of 5
    assert pck_table(scores, [0.1, 0.9]) == {0.1: 37.5, 0.9: 100}
    assert pck_by_group({"x": scores[:1], "empty": scores[2:]}, [0.1]) == {"x": {0.1: 75}}


def test_given_estimates_score_like_the_flow_that_made_them() -> None:
    predicted = [[10, 40.5], [100, 100.5], [300.75, 202.25]]
    for frame in ("original", "model"):
        protocol = Protocol(frame=frame, threshold="image")
        expected = [10, 40, 0] if frame == "original" else [5, 20, 0]
        assert score_points(PAIR, predicted, protocol).distances.tolist() == expected


def test_the_flow_is_looked_up_as_the_published_evaluation_does() -> None:
    """Upsampled bilinearly to 256x256, times 16, indexed at the truncated keypoints."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    flow = rng.normal(0, 2, (2, 16, 16))
    points = rng.uniform(-5, 420, (60, 2))
    pair = PairKeypoints(rng.uniform(0, 300, (60, 2)), points, (320, 240), (400, 300), box_a=(0, 0, 10, 10))
    up = torch.nn.functional.interpolate(torch.tensor(flow)[None], MODEL_FRAME, mode="bilinear")[0].numpy() * 16
    query = np.clip(np.trunc(points * [256 / 400, 256 / 300]), 0, 255).astype(int)
    estimate = query + up[:, query[:, 1], query[:, 0]].T
    expected = np.linalg.norm(estimate - pair.points_a * [256 / 320, 256 / 240], axis=1)
    assert score_flow(pair, flow, preset("cats2021", "spair")).distances == pytest.approx(expected, abs=1e-9)


def test_presets_say_what_they_are() -> None:
    assert preset("cats2021", "willow") == Protocol("cats2021", "b->a", "model", "keypoints-padded", "pair", "truncate")
    assert preset("cats2021", "spair").threshold == "box"
    assert preset("cats2021", "pfpascal").threshold == "image"
    assert preset("corrected", "willow") == Protocol("corrected", "a->b", "original", "keypoints", "pair", "none")
    assert preset("corrected", "spair").threshold == "box"
    assert preset("per-point", "willow").reduction == "point"
    assert preset("corrected").with_(threshold="image").name == "corrected (threshold image)"
    assert preset("corrected").with_(threshold="keypoints") == preset("corrected")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: preset("cats2022"), "cats2021, corrected, per-point"),
        (lambda: Protocol(threshold="bbox"), "threshold 'bbox' is not one of box"),  # type: ignore[arg-type]
        (lambda: Protocol(rounding="truncate"), "in the frame 'model' only"),
        (lambda: PairKeypoints([[1, 1]], [[1, 1], [2, 2]], (9, 9), (9, 9)), "1 points in a and 2 in b"),
        (lambda: pck([PairScore(np.zeros(0), np.nan)], 0.1), "no pair has keypoints"),
        (lambda: pck([PairScore(np.zeros(1), 1)], 0), "alpha is 0"),
        (lambda: score_points(PAIR, [[1, 1]], Protocol()), "1 estimates for 3 keypoints"),
    ],
)
def test_refusals(call: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()  # type: ignore[operator]


def test_thresholds_that_cannot_be_measured_are_refused() -> None:
    single = PairKeypoints([[1, 1]], [[1, 1]], (64, 64), (64, 64), name="one point")
    with pytest.raises(InputError, match="one point has no object box"):
        score_flow(single, ZERO_FLOW, Protocol(threshold="box"))
    with pytest.raises(InputError, match="one point: the threshold 'keypoints' is 0 pixels"):
        score_flow(single, ZERO_FLOW, Protocol(threshold="keypoints"))
