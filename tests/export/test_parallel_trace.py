"""A graph made in a copy of the process is the graph made here, and a copy that dies is not missed."""

import os

import pytest

from digseg_engine.contract import TEXT_ENCODER
from digseg_engine.errors import DigsegError
from digseg_engine.model.graph_modules import graph_modules
from digseg_export import parallel_trace as module
from digseg_export.parallel_trace import parallel_trace, second_core
from digseg_export.to_onnx import example_inputs, export_text_encoder


@pytest.mark.skipif(not second_core(), reason="one core: nothing is made beside anything")
def test_the_copy_makes_the_same_graph(nano):
    parts, inputs = graph_modules(nano), example_inputs(nano, 2 * nano.stride)
    here, made_in = export_text_encoder(parts, inputs), []

    def make():
        made_in.append(os.getpid())
        return export_text_encoder(parts, inputs)

    with parallel_trace(make) as graph:
        there = graph()
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

    with pytest.raises(DigsegError, match="no graph"), parallel_trace(fails) as graph:
        graph()
