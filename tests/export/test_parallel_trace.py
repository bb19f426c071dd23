"""Graphs made in a copy of the process are the graphs made here, and a copy that dies is not missed."""

import os
import subprocess
import sys

import pytest
from programs import run_program

from digseg_engine.contract import TEXT_ENCODER
from digseg_engine.errors import DigsegError
from digseg_engine.model.graph_modules import graph_modules
from digseg_export import parallel_trace as module
from digseg_export.parallel_trace import parallel_trace, second_core
from digseg_export.to_onnx import example_inputs, export_text_encoder

pytestmark = pytest.mark.traces_anew


@pytest.mark.skipif(not second_core(), reason="one core: nothing is made beside anything")
@pytest.mark.slow
def test_the_copy_makes_the_same_graph(nano):
    parts, inputs = graph_modules(nano), example_inputs(nano, 2 * nano.stride)
    here, made_in = export_text_encoder(parts, inputs), []

    def make():
        made_in.append(os.getpid())
        return {"one": export_text_encoder(parts, inputs), "other": here}

    with parallel_trace(make) as graphs:
        made = graphs()
    there = made["one"]
    assert set(made) == {"one", "other"} and made["other"].SerializeToString() == here.SerializeToString()
    assert made_in == []  # not in this process
    assert there.graph.node[0].name and there.graph.input[0].name == TEXT_ENCODER.inputs[0].name
    for one in (here, there):
        del one.metadata_props[:], one.graph.metadata_props[:]
        for node in one.graph.node:
            del node.metadata_props[:]
    assert there.graph.SerializeToString(deterministic=True) == here.graph.SerializeToString(deterministic=True)


@pytest.mark.parametrize("cores", [1, 2])
def test_a_failure_is_met_here(monkeypatch, cores):
    if cores == 2 and not second_core():
        pytest.skip("one core")
    monkeypatch.setattr(module, "second_core", lambda: cores == 2)
    parent = os.getpid()

    def fails():
        raise DigsegError("no graph" if os.getpid() == parent else "in the copy")

    with pytest.raises(DigsegError, match="no graph"), parallel_trace(fails) as graphs:
        graphs()


OLD_SESSION = """
import gc, os, time, numpy, onnx, onnxruntime
from onnx import TensorProto, helper
from digseg_export.parallel_trace import parallel_trace
value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value("x")], [value("y")])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 4
gc.disable()
circle = [onnxruntime.InferenceSession(model.SerializeToString(), options)]
circle[0].run(None, {"x": numpy.zeros(1, numpy.float32)})
time.sleep(1)  # its threads go to sleep
circle.append(circle)  # only the collector can free it
del circle

def make():
    gc.collect()
    model.doc_string = str(os.getpid())
    return {"g": model}

with parallel_trace(make) as answer:
    print(int(answer()["g"].doc_string) != os.getpid())
"""


@pytest.mark.skipif(not second_core(), reason="one core: nothing is made beside anything")
def test_a_session_that_the_parent_left_is_not_collected_in_the_copy():
    """Its threads were not copied: to wait for their end never ends, or kills the copy."""
    try:
        done = run_program([sys.executable, "-c", OLD_SESSION], limit=120)
    except subprocess.TimeoutExpired:
        pytest.fail("the copy waits for threads that it does not have")
    assert done.stdout.split() == ["True"], done.stderr  # and it did not die of it: the graph is the copy's
