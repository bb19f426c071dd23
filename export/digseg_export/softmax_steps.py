"""Softmax along an axis that is not the last, in the steps it is made of, for graphs that a CPU runs.

ONNX Runtime's CPU provider turns the tensor round, takes the softmax of every short row, and turns it back. The attention of
a prompt has pixels last and tokens, a few, before them: there the steps, each along whole vectors of pixels, take a fraction
of the time. The numbers are those of the usual stable softmax.
"""

from __future__ import annotations

import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper


def softmax_in_steps(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model itself, every `Softmax` along an axis before the last (given as -2, -3 ...) replaced, loops included."""
    _rewrite(model.graph)
    return model


def _rewrite(graph: GraphProto) -> None:
    nodes: list[NodeProto] = []
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                _rewrite(attribute.g)
        axis = next((a.i for a in node.attribute if a.name == "axis"), -1)
        if node.op_type != "Softmax" or axis >= -1:
            nodes.append(node)
            continue
        axes = f"{node.output[0]}.axis"
        graph.initializer.append(helper.make_tensor(axes, TensorProto.INT64, [1], [axis]))
        nodes += _steps(node.input[0], node.output[0], axes)
    del graph.node[:]
    graph.node.extend(nodes)


def _steps(scores: str, result: str, axes: str) -> list[NodeProto]:
    """exp(x - max) / sum of the same."""
    most, low, grown, total = (f"{result}.{step}" for step in ("max", "low", "exp", "sum"))
    return [
        helper.make_node("ReduceMax", [scores, axes], [most], name=most, keepdims=1),
        helper.make_node("Sub", [scores, most], [low], name=low),
        helper.make_node("Exp", [low], [grown], name=grown),
        helper.make_node("ReduceSum", [grown, axes], [total], name=total, keepdims=1),
        helper.make_node("Div", [grown, total], [result], name=result),
    ]
