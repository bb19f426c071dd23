"""A convolution without a bias stays in float: OpenVINO loses its scale in int8."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from digseg_export.quantize import quantise, without_bias
from digseg_export.ranges import tensor_ranges


def model():
    """Two convolutions in a row, the second of which has no bias."""
    rng = np.random.default_rng(0)
    constants = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (6, 8, 1, 1)}
    initial = [numpy_helper.from_array(rng.normal(size=s).astype(np.float32), name) for name, s in constants.items()]
    nodes = [helper.make_node("Conv", ["x", "w1", "b1"], ["h"], "with", pads=[1] * 4),
             helper.make_node("Conv", ["h", "w2"], ["y"], "without")]  # fmt: skip
    ends = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, c, 8, 8])] for n, c in (("x", 3), ("y", 6))]
    made = helper.make_model(helper.make_graph(nodes, "g", *ends, initial), opset_imports=[helper.make_opsetid("", 21)])
    onnx.checker.check_model(made)
    return made


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_it_is_left_out_and_the_report_says_why(precision):
    feeds = [{"x": np.random.default_rng(1).normal(size=(1, 3, 8, 8)).astype(np.float32)}]
    assert list(without_bias(model())) == ["without"]
    found = quantise(model(), precision, tensor_ranges(model(), feeds), feeds, {}, limit=1.0)
    assert found.report["quantised"] == 1 and "no bias" in found.report["left_out"]["without"]
    assert {"QuantizeLinear"} <= {node.op_type for node in found.model.graph.node}
    (kept,) = (node for node in found.model.graph.node if node.name == "without")
    assert "quantized" not in kept.input[1] and "Dequantize" not in kept.input[1]
