"""The bench of a core's ceiling: its large nodes are what they are said to be, and time is counted to the right kind."""

import numpy as np
import onnxruntime
import pytest

from benchmarks import cpu_ceiling
from benchmarks.cpu_ceiling import OnnxRuntime, by_kind, one_node, operations


@pytest.mark.parametrize("kind", ["convolution", "product"])
def test_a_large_node_has_the_operations_that_are_counted(monkeypatch, kind):
    monkeypatch.setattr(cpu_ceiling, "CHANNELS", 3)
    monkeypatch.setattr(cpu_ceiling, "CELLS", 5)
    monkeypatch.setattr(cpu_ceiling, "ROWS", 7)
    model, feeds, flop = one_node(kind)
    (made,) = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, feeds)
    assert made.shape == ((1, 3, 5, 5) if kind == "convolution" else (7, 7))
    inner = 3 * 9 if kind == "convolution" else 7
    assert flop == pytest.approx(2 * made.size * inner / 1e9)


def test_time_goes_to_the_kind_of_its_operator():
    found = by_kind({"Conv": 1.0, "FusedConv": 2.0, "FullyConnected": 4.0, "Softmax": 8.0, "MVN": 16.0})
    assert found == {"convolution": 3.0, "product": 4.0, "rest": 24.0}


def test_a_profile_names_the_node_that_takes_the_time(monkeypatch):
    monkeypatch.setattr(cpu_ceiling, "CELLS", 16)
    model, feeds, _ = one_node("convolution")
    spent = OnnxRuntime().profile(model, feeds, 3)
    assert spent["convolution"] > 0 and spent["product"] == 0


def test_four_times_the_pixels_are_four_times_the_convolutions():
    small, large = operations(64), operations(128)
    assert large["convolution"] == pytest.approx(4 * small["convolution"], rel=1e-3)
    assert large["product"] > 4 * small["product"] > 0  # attention grows faster
    assert np.isfinite(list(large.values())).all()
