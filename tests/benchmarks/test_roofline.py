"""Arithmetic and bytes of small graphs, counted by hand."""

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from cats.benchmarks.roofline import graph_cost, machine_peaks


def test_convolution_and_product_by_hand(tmp_path):
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 18]>
        g (float[batch,3,8,8] x) => (float[batch,4,8,5] y) {
          c = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w)
          y = MatMul(c, m)
        }"""
    )
    constants = {"w": np.zeros((4, 3, 3, 3), np.float32), "m": np.zeros((8, 5), np.float32)}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    onnx.save(model, tmp_path / "g.onnx")
    cost = graph_cost(tmp_path / "g.onnx")
    flop = 2 * (4 * 8 * 8) * (3 * 3 * 3) + 2 * (4 * 8 * 5) * 8
    assert cost["gflop"] * 1e9 == pytest.approx(flop)
    assert cost["weights_mb"] * 1e6 == pytest.approx(4 * (4 * 3 * 3 * 3 + 8 * 5))
    values = (3 * 64 + 4 * 27 + 4 * 64) + (4 * 64 + 40 + 4 * 40)
    assert cost["unfused_mb"] * 1e6 == pytest.approx(4 * values)


def test_peaks_are_positive():
    peaks = machine_peaks(1, size=128, repeats=2)
    assert peaks["fp32_gflops"] > 0
    assert peaks["copy_gbs"] > 0
