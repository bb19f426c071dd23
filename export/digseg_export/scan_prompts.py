"""Mask decoder and presence as a CPU should run them: what depends on a prompt is scanned, one prompt after the other.

All prompts at once is right for a GPU. On a CPU the maps of many prompts do not fit in the cache, and time grows faster
than the number of prompts; one prompt's maps do fit. The rewrite moves every node that depends on the text into the body
of a standard `Scan`, unchanged; the rest runs once, and the body reads it from outside. Borders and weights stay.
"""

from __future__ import annotations

import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto, helper

from digseg_engine.contract import ENCODING

ONE = "prompt."  # prefix of names inside the body


def scan_prompts(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a graph that is asked with an encoding, with the same inputs, outputs and weights, whose prompts are scanned."""
    scanned = onnx.ModelProto()
    scanned.CopyFrom(model)
    graph = scanned.graph
    text = [value for value in graph.input if value.name != ENCODING.name]
    shared, inside = split(list(graph.node), {value.name for value in text})
    body = _body(inside, text, graph.output[0])
    axes = {"num_scan_inputs": len(text), "scan_output_axes": [1]}
    scan = helper.make_node(
        "Scan", [value.name for value in text], [graph.output[0].name], name="prompts", body=body, **axes
    )
    del graph.node[:], graph.value_info[:]
    graph.node.extend([*shared, scan])
    return scanned


def split(nodes: list[NodeProto], text: set[str]) -> tuple[list[NodeProto], list[NodeProto]]:
    """(nodes that do not depend on the tensors `text`, nodes that do), each in order."""
    reached = set(text)
    shared: list[NodeProto] = []
    inside: list[NodeProto] = []
    for node in nodes:
        depends = not reached.isdisjoint(node.input)
        (inside if depends else shared).append(node)
        if depends:
            reached.update(node.output)
    return shared, inside


def _body(nodes: list[NodeProto], text: list[ValueInfoProto], output: ValueInfoProto) -> onnx.GraphProto:
    """One prompt: its slices get their axis K back (of size 1), the nodes run as they were, K leaves the answer again."""
    names = {name for node in nodes for name in node.output} | {value.name for value in text}
    first, second = (helper.make_tensor(f"{ONE}axis.{i}", TensorProto.INT64, [1], [i]) for i in (0, 1))
    slices = [_slice(value) for value in text]
    opened = [helper.make_node("Unsqueeze", [cut.name, first.name], [ONE + v.name]) for cut, v in zip(slices, text)]
    moved = []
    for node in nodes:
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [ONE + name if name in names else name for name in node.input]
        copy.output[:] = [ONE + name for name in node.output]
        moved.append(copy)
    result = _slice(output)
    closed = helper.make_node("Squeeze", [ONE + output.name, second.name], [result.name])
    return helper.make_graph([*opened, *moved, closed], "prompt", slices, [result], [first, second])


def _slice(value: ValueInfoProto) -> ValueInfoProto:
    """One prompt's part of a tensor."""
    return helper.make_tensor_value_info(f"{ONE}slice.{value.name}", value.type.tensor_type.elem_type, None)
