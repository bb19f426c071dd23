"""Our operators survive the tools that others run on them: same results after each. A tool that is not installed is skipped.

`test_interchange_bundle.py` does the same with the graphs of a whole bundle.
"""

import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from digseg_export.conversion import save
from digseg_export.precision import Policy, last_layer, to_precision
from digseg_export.quantize import insert
from digseg_export.ranges import tensor_ranges

IO = {"image": "float32", "keys": "graph", "logits": "float32"}


def small_segmenter():
    """The operators of our graphs in small: convolution, the norm's reshape pattern, attention, resize, sub-pixels."""
    rng = np.random.default_rng(0)

    def weight(name, *shape):
        return numpy_helper.from_array((rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32), name)

    def ints(name, *values):
        return numpy_helper.from_array(np.array(values, np.int64), name)

    node = helper.make_node
    nodes = [
        node("Conv", ["image", "w1", "b1"], ["c1"], name="conv1", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Shape", ["c1"], ["size"], name="size"),
        node("Reshape", ["c1", "groups"], ["g"], name="grouped"),
        node("InstanceNormalization", ["g", "one", "zero"], ["n"], name="norm", epsilon=1e-5),
        node("Reshape", ["n", "size"], ["nb"], name="ungrouped"),
        node("Sigmoid", ["nb"], ["s"], name="sigmoid"),
        node("Mul", ["nb", "s"], ["silu"], name="silu"),
        node("Reshape", ["silu", "flat"], ["tokens"], name="flatten"),
        node("Transpose", ["tokens"], ["q"], name="transpose", perm=[0, 2, 1]),
        node("MatMul", ["q", "wq"], ["qq"], name="query"),
        node("MatMul", ["qq", "keys"], ["scores"], name="scores"),
        node("Softmax", ["scores"], ["p"], name="softmax", axis=-1),
        node("MatMul", ["p", "wv"], ["mixed"], name="mix"),
        node("Transpose", ["mixed"], ["back"], name="back", perm=[0, 2, 1]),
        node("Reshape", ["back", "size"], ["map"], name="unflatten"),
        node("Add", ["map", "silu"], ["sum"], name="residual"),
        node("Resize", ["sum", "", "scales"], ["up"], name="resize", mode="linear"),
        node("Conv", ["up", "w2", "b2"], ["c2"], name="conv2", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("DepthToSpace", ["c2"], ["logits"], name="pixels", blocksize=2),
    ]  # fmt: skip
    constants = [
        weight("w1", 8, 3, 3, 3), weight("b1", 8), weight("wq", 8, 8), weight("wv", 6, 8),
        weight("w2", 4, 8, 3, 3), weight("b2", 4),
        numpy_helper.from_array(np.ones(2, np.float32), "one"), numpy_helper.from_array(np.zeros(2, np.float32), "zero"),
        numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"), ints("groups", 0, 2, -1), ints("flat", 0, 8, -1),
    ]  # fmt: skip
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["B", 3, "H", "W"]),
              helper.make_tensor_value_info("keys", TensorProto.FLOAT, [8, 6])]  # fmt: skip
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", 1, "h", "w"])]
    graph = helper.make_graph(nodes, "small", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def feeds(kind=np.float32):
    rng = np.random.default_rng(1)
    return {
        "image": rng.standard_normal((2, 3, 16, 24)).astype(np.float32),
        "keys": rng.standard_normal((8, 6)).astype(kind),
    }


def made(precision):
    model = small_segmenter()
    if precision == "int8":
        return insert(model, "int8", tensor_ranges(model, [feeds()]), ["conv1", "query", "mix", "conv2"])
    return to_precision(model, Policy(precision, nodes=last_layer(model)), IO)[0]


def run(path, kind):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, feeds(kind))[
        0
    ]


@pytest.fixture(params=["fp32", "fp16", "int8"])
def graph(request, tmp_path):
    path = tmp_path / "graph.onnx"
    save(made(request.param), path)
    kind = np.float16 if request.param == "fp16" else np.float32
    return path, kind, run(path, kind)


def assert_unchanged(path, kind, want):
    got = run(path, kind)
    assert (
        got.shape == want.shape
        and np.abs(got - want).max() <= (1e-5 if kind == np.float32 else 2e-3) * np.abs(want).max()
    )


def test_the_onnx_checker_accepts_them(graph):
    onnx.checker.check_model(str(graph[0]), full_check=True)


def test_bf16_is_valid_from_the_opset_in_which_conv_takes_it(tmp_path):
    model = made("bf16")
    save(model, tmp_path / "graph.onnx")
    onnx.checker.check_model(str(tmp_path / "graph.onnx"), full_check=True)
    assert model.opset_import[0].version == 22
    schema = onnx.defs.get_schema("Conv", 22)
    assert "tensor(bfloat16)" in next(c.allowed_type_strs for c in schema.type_constraints)


def test_symbolic_shape_inference_leaves_the_result(graph, tmp_path):
    pytest.importorskip("sympy")
    from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

    path, kind, want = graph
    inferred = SymbolicShapeInference.infer_shapes(onnx.load(str(path)), auto_merge=True)
    known = {v.name for v in inferred.graph.value_info}
    assert "c1" in known
    onnx.save(inferred, str(tmp_path / "inferred.onnx"))
    assert_unchanged(tmp_path / "inferred.onnx", kind, want)


def test_onnxslim_leaves_the_result(graph, tmp_path):
    onnxslim = pytest.importorskip("onnxslim")
    path, kind, want = graph
    onnxslim.slim(str(path), str(tmp_path / "slim.onnx"))
    assert_unchanged(tmp_path / "slim.onnx", kind, want)


@pytest.mark.skipif(not (find_spec("polygraphy") and find_spec("onnx_graphsurgeon")),
                    reason="polygraphy and onnx-graphsurgeon are not installed")  # fmt: skip
@pytest.mark.slow
def test_polygraphy_reads_and_sanitizes_them(graph, tmp_path):
    path, kind, want = graph
    polygraphy = [sys.executable, "-c", "import sys; from polygraphy.tools import main; sys.exit(main())"]
    shown = subprocess.run([*polygraphy, "inspect", "model", str(path)], capture_output=True, text=True, check=True)
    assert "image" in shown.stdout and "logits" in shown.stdout
    out = tmp_path / "clean.onnx"
    subprocess.run([*polygraphy, "surgeon", "sanitize", str(path), "--fold-constants", "-o", str(out)],
                   capture_output=True, check=True)  # fmt: skip
    assert_unchanged(out, kind, want)
