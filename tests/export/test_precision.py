"""The precision pass on small graphs: right types at every border, islands where the policy says, same numbers."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from digseg_engine.errors import UsageError, VerificationError
from digseg_engine.precisions import spec_of
from digseg_export.graph_check import check_graph
from digseg_export.precision import Policy, last_layer, to_precision, widen
from digseg_export.quantize import worst

IO = {"x": "float32", "t": "graph", "y": "float32"}


def graph(weight=None):
    """y = (softmax(x @ w + t) @ w2) reshaped: one island in the middle, a border of each kind."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((6, 8), dtype=np.float32) if weight is None else weight
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("Add", ["a", "t"], ["b"], name="plus"),
        helper.make_node("Softmax", ["b"], ["c"], name="soft", axis=-1),
        helper.make_node("MatMul", ["c", "w2"], ["d"], name="second"),
        helper.make_node("Reshape", ["d", "shape"], ["y"], name="view"),
    ]
    constants = [
        numpy_helper.from_array(weight, "w"),
        numpy_helper.from_array(rng.standard_normal((8, 5), dtype=np.float32), "w2"),
        numpy_helper.from_array(np.array([-1], np.int64), "shape"),
    ]
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", ["N", 6]), ("t", [8]))]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["M"])]
    made = helper.make_graph(nodes, "g", inputs, outputs, constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model, t_type=np.float32):
    rng = np.random.default_rng(1)
    feeds = {"x": rng.standard_normal((4, 6), dtype=np.float32), "t": rng.standard_normal(8).astype(t_type)}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def test_fp16_keeps_the_numbers_and_the_contract():
    model = graph()
    policy = Policy("fp16", nodes=last_layer(model))
    half, report = to_precision(model, policy, IO)
    onnx.checker.check_model(half, full_check=True)
    types = {v.name: v.type.tensor_type.elem_type for v in (*half.graph.input, *half.graph.output)}
    assert types == {"x": TensorProto.FLOAT, "t": TensorProto.FLOAT16, "y": TensorProto.FLOAT}
    got, want = run(half, np.float16), run(model)
    assert got.dtype == np.float32 and np.abs(got - want).max() < 5e-3 and not np.array_equal(got, want)
    assert report["islands"]["Softmax"]["count"] == 1 and "reason" in report["islands"]["Softmax"]
    assert report["islands"]["MatMul"]["count"] == 1 and report["casts"] >= 3
    kept = {t.name: t.data_type for t in half.graph.initializer}
    assert kept == {"w.fp16": TensorProto.FLOAT16, "w2": TensorProto.FLOAT, "shape": TensorProto.INT64}


def test_an_output_in_half_precision_is_cast_back_under_its_own_name():
    half, _ = to_precision(graph(), Policy("fp16"), IO)
    onnx.checker.check_model(half, full_check=True)
    assert half.graph.output[0].name == "y" and run(half, np.float16).dtype == np.float32
    low, _ = to_precision(graph(), Policy("fp16"), {**IO, "y": "graph"})
    assert run(low, np.float16).dtype == np.float16


def test_a_named_node_becomes_an_island():
    model = graph()
    half, report = to_precision(model, Policy("fp16", nodes={"first": "planted"}), IO)
    assert report["islands"]["MatMul"]["count"] == 1
    assert {t.name for t in half.graph.initializer} >= {"w", "w2.fp16"}


def test_fp32_is_left_alone():
    model = graph()
    same, report = to_precision(model, Policy("fp32"), IO)
    assert same is model and report["islands"] == {}


def test_a_weight_beyond_fp16_is_named():
    weight = np.ones((6, 8), np.float32)
    weight[0, 0] = 1e6
    with pytest.raises(UsageError, match=r"weight w reaches 1e\+06, fp16 ends at 65504"):
        to_precision(graph(weight), Policy("fp16"), IO)
    weight[0, 0] = np.finfo(np.float32).min  # the "minus infinity" of an attention mask
    half, _ = to_precision(graph(weight), Policy("fp16"), IO)
    (w,) = [numpy_helper.to_array(t) for t in half.graph.initializer if t.name == "w.fp16"]
    assert w.min() == -65504


def test_the_cpu_graph_shares_the_weights_file(tmp_path):
    model = graph(np.random.default_rng(3).standard_normal((6, 400), dtype=np.float32))
    model.graph.initializer[1].CopyFrom(
        numpy_helper.from_array(np.random.default_rng(4).standard_normal((400, 5), dtype=np.float32), "w2")
    )
    model.graph.input[1].CopyFrom(helper.make_tensor_value_info("t", TensorProto.FLOAT, [1]))
    half, _ = to_precision(model, Policy("fp16"), IO)
    onnx.save_model(half, str(tmp_path / "g.onnx"), save_as_external_data=True, location="g.data", size_threshold=64)
    stored = onnx.load(str(tmp_path / "g.onnx"), load_external_data=False)
    onnx.save_model(widen(model, stored, "fp16"), str(tmp_path / "g.fp32.onnx"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["g.data", "g.fp32.onnx", "g.onnx"]
    assert (tmp_path / "g.fp32.onnx").stat().st_size < 2000 < (tmp_path / "g.data").stat().st_size
    check_graph(tmp_path / "g.fp32.onnx")
    feeds = {"x": np.random.default_rng(1).standard_normal((4, 6), dtype=np.float32), "t": np.zeros(1, np.float32)}
    wide = onnxruntime.InferenceSession(str(tmp_path / "g.fp32.onnx"), providers=["CPUExecutionProvider"])
    plain = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert np.abs(wide.run(None, feeds)[0] - plain.run(None, feeds)[0]).max() < 2e-3


def test_unknown_precisions_are_refused():
    with pytest.raises(UsageError, match="unknown precision 'fp7'; expected one of fp32, fp16, bf16, int8, fp8"):
        spec_of("fp7")


def save(model, path):
    onnx.save_model(model, str(path))
    return path


def test_graph_check_refuses_what_other_runtimes_cannot_read(tmp_path):
    report = check_graph(save(graph(), tmp_path / "ok.onnx"))
    assert report["opset"] == 20 and report["operators"]["MatMul"] == 2
    new = graph()
    new.opset_import[0].version = 21
    with pytest.raises(VerificationError, match="opset 21, expected at most 20"):
        check_graph(save(new, tmp_path / "new.onnx"))
    foreign = graph()
    foreign.graph.node[1].domain = "com.microsoft"
    foreign.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(VerificationError, match=r"com\.microsoft"):
        check_graph(save(foreign, tmp_path / "foreign.onnx"))
    broken = graph()
    broken.graph.node[0].input[1] = "nothing"
    with pytest.raises(VerificationError, match="ONNX checker"):
        check_graph(save(broken, tmp_path / "broken.onnx"))
    norm = graph()
    norm.graph.node.insert(1, helper.make_node("GroupNormalization", ["a", "s", "s"], ["a2"], num_groups=2))
    norm.graph.node[2].input[0] = "a2"
    norm.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "s"))
    with pytest.raises(VerificationError):
        check_graph(save(norm, tmp_path / "norm.onnx"))


def test_a_layer_that_gives_no_number_is_the_most_sensitive_one():
    nan = float("nan")
    assert worst([nan, 0.1]) == worst([0.1, nan]) == float("inf") and worst([0.1, 0.3]) == pytest.approx(0.3)
