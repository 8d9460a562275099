"""Pixels in, points out: the graph against Pillow and the Python path."""

import copy

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_models import tiny_model

from cats.core.errors import InputError, ModelFileError
from cats.core.geometry import pixels_to_cells, sample_grid, transfer_points
from cats.core.images import preprocess, resize
from cats.core.metadata import write_model
from cats.export.export import describe
from cats.export.exported import PeakSession
from cats.export.forms import build_form
from cats.export.graph.end_to_end import Preprocess, Transfer
from cats.runtime import Matcher

SIZES = st.integers(16, 700)


def photo(width, height, seed=0):
    """Noise of two scales: all grey levels, and smooth parts where exact halves occur."""
    rng = np.random.default_rng(seed)
    fine = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 4, 3), dtype=np.uint8)).resize((width, height))
    return np.where(rng.random((height, width, 1)) < 0.5, fine, np.asarray(coarse))


@pytest.fixture(scope="module")
def full_size():
    return Preprocess(tiny_model(image_size=256, feature_size=16, projection_dim=128, num_heads=6)).eval()


@settings(max_examples=40, deadline=None)
@given(width=SIZES, height=SIZES, seed=st.integers(0, 99))
def test_resize_is_pillows_bit_by_bit(full_size, width, height, seed):
    image = photo(width, height, seed)
    ours = full_size.resize(torch.from_numpy(image)[None])[0].permute(1, 2, 0).numpy()
    assert np.array_equal(ours, resize(image, (256, 256)))


@pytest.mark.parametrize("size", [(4000, 60), (33, 2500), (256, 256), (512, 128), (320, 240)])
def test_resize_of_extreme_and_simple_ratios(full_size, size):
    image = photo(*size)
    ours = full_size.resize(torch.from_numpy(image)[None])[0].permute(1, 2, 0).numpy()
    assert np.array_equal(ours, resize(image, (256, 256)))


@pytest.mark.parametrize("size_a", [(90, 120), (64, 64), (301, 47)])
@pytest.mark.parametrize("batch", [1, 3])
def test_file_against_the_python_path(forms, model, size_a, batch):
    size_b = (75, 200)
    images = [[photo(*size, seed) for seed in range(10 * k, 10 * k + batch)] for k, size in enumerate((size_a, size_b))]
    rng = np.random.default_rng(0)
    points = (rng.random((batch, 7, 2)) * size_a - 0.5).astype(np.float32)
    points[:, :2] = [[-0.5, -0.5], [size_a[0] - 0.5, size_a[1] - 0.5]]
    feeds = {"image_a": np.stack(images[0]), "image_b": np.stack(images[1]), "points_a": points}
    actual = PeakSession(forms["end-to-end"])(feeds)

    pre = model.config.preprocessing
    inputs = [torch.from_numpy(np.stack([preprocess(image, pre) for image in side])) for side in images]
    with torch.no_grad():
        flow, confidence = (x.numpy() for x in model.match(*inputs))
    assert np.abs(actual["flow"] - flow).max() < 1e-3  # cells of 8 pixels
    assert np.abs(actual["confidence"] - confidence).max() < 1e-3
    for k in range(batch):
        places = transfer_points(points[k], flow[k], size_a, size_b)
        assert np.abs(actual["points_b"][k] - places).max() < 0.05
        values = sample_grid(confidence[k][None], pixels_to_cells(points[k], size_a, 8))[:, 0]
        assert np.abs(actual["points_confidence"][k] - values).max() < 1e-3
    assert np.ptp(actual["points_b"]) > 20


@pytest.mark.parametrize("batch", [None, 2])
def test_the_matcher_runs_the_file(forms, model, tmp_path, batch):
    graphs = forms if batch is None else forms | build_form(model, "end-to-end", batch=batch)
    for kind in ("pair", "end-to-end"):
        write_model(
            copy.deepcopy(graphs[kind]), describe(model, kind, precision="fp32", opset=20), tmp_path / f"{kind}.onnx"
        )
    photos = [Image.fromarray(photo(*size)) for size in ((90, 120), (301, 47), (64, 64))]
    pairs = list(zip(photos, photos[1:] + photos[:1], strict=True))
    with (
        Matcher(tmp_path / "pair.onnx", threads=1) as pair,
        Matcher(tmp_path / "end-to-end.onnx", threads=1) as whole,
    ):
        assert whole.metadata.kind == "end-to-end"
        found = whole.match_batch(pairs, forward_backward=True)
        for expected, match in zip(pair.match_batch(pairs, forward_backward=True), found, strict=True):
            assert (match.size_a, match.size_b) == (expected.size_a, expected.size_b)
            assert np.abs(match.flow - expected.flow).max() < 1e-3
            assert np.abs(match.backward_flow - expected.backward_flow).max() < 1e-3
            assert np.abs(match.confidence - expected.confidence).max() < 1e-3


def test_openvino_runs_the_file(forms, model, tmp_path):
    """Whose whole numbers have 32 bits; a resize that needs more is half a cell off and is refused."""
    pytest.importorskip("openvino")
    path, former = tmp_path / "end-to-end.onnx", tmp_path / "former.onnx"
    graph = copy.deepcopy(forms["end-to-end"])
    write_model(copy.deepcopy(graph), describe(model, "end-to-end", precision="fp32", opset=20), path)
    photos = [Image.fromarray(photo(*size)) for size in ((640, 480), (1301, 147))]
    with Matcher(path, threads=1) as expected, Matcher(path, "openvino", threads=1) as found:
        for one, other in ((photos[0], photos[1]), (photos[1], photos[0])):
            assert np.abs(found.match(one, other).flow - expected.match(one, other).flow).max() < 1e-3
    with pytest.raises(InputError, match="bf16 would round"):
        Matcher(path, "openvino", precision="bf16")
    graph.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1 << 23), "former"))
    graph.graph.node.insert(0, onnx.helper.make_node("Mul", ["former", "former"], ["unused"]))
    write_model(graph, describe(model, "end-to-end", precision="fp32", opset=20), former)
    with pytest.raises(ModelFileError, match="before its resize did with 32 bits"):
        Matcher(former, "openvino")


def test_points_outside_are_clamped_as_in_geometry():
    rng = np.random.default_rng(0)
    flow, confidence = rng.normal(size=(1, 2, 8, 8)).astype(np.float32), rng.random((1, 8, 8)).astype(np.float32)
    points = np.float32([[[-30, 5], [200, 400], [3, -0.5]]])
    image_a, image_b = torch.zeros(1, 40, 60, 3), torch.zeros(1, 33, 21, 3)
    places, _ = Transfer(8)(*map(torch.from_numpy, (points, flow, confidence)), image_a, image_b)
    assert np.allclose(places[0].numpy(), transfer_points(points[0], flow[0], (60, 40), (21, 33)), atol=1e-3)
