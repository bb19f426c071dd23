"""Mask decoder and presence as a CPU should run them: what depends on a prompt is scanned, one prompt after the other.

All prompts at once is right for a GPU. On a CPU the maps of many prompts do not fit in the cache, and time grows faster
than the number of prompts; one prompt's maps do fit. The rewrite moves every node that depends on the text into the body
of a standard `Scan`; the rest runs once, and the body reads it from outside. Borders and weights stay. Three more things
make a round cheap, and none changes what is computed:

* a round knows that it has one prompt, so shapes that depend on their number are worked out once, outside;
* a prompt meets the picture with its own tokens alone, without the padding that the longest prompt brought (`own_tokens`);
* what a prompt says as a whole (`meaning_of` of `model/presence.py`) does not look at the picture, and is worked out of all
  prompts together, outside.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto, helper

from digseg_engine.contract import ENCODING, TEXT_KEYS, TEXT_VALUES, TOKEN_MASK
from digseg_export.softmax_steps import softmax_in_steps

ONE = "prompt."  # prefix of names inside the body
TOKEN_AXES = {TEXT_KEYS.name: -1, TEXT_VALUES.name: -2, TOKEN_MASK.name: -1}


def scan_prompts(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a graph that is asked with an encoding, with the same inputs, outputs and weights, whose prompts are scanned."""
    scanned = onnx.ModelProto()
    scanned.CopyFrom(model)
    graph = scanned.graph
    text = {value.name: value for value in graph.input if value.name != ENCODING.name}
    together = _before_the_picture(list(graph.node), set(text))
    rest = [node for node in graph.node if node not in together]
    nodes, ones = _of_one_prompt(rest, set(text))
    asked = [*text.values(), *(_value(node.output[0], TensorProto.FLOAT) for node in together[-1:])]
    shared, inside = split(nodes, {value.name for value in asked})
    body = _body(inside, asked, graph.output[0])
    axes = {"num_scan_inputs": len(asked), "scan_output_axes": [1]}
    scan = helper.make_node(
        "Scan", [value.name for value in asked], [graph.output[0].name], name="prompts", body=body, **axes
    )
    del graph.node[:], graph.value_info[:]
    graph.initializer.extend(ones)
    graph.node.extend([*shared, *together, scan])
    return softmax_in_steps(scanned)


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


def own_tokens(names: dict[str, str], ending: str) -> tuple[list[NodeProto], list[TensorProto]]:
    """Nodes and constants that cut one prompt's text behind its last token; padding adds nothing to an attention.

    names: of the tensors by their name in the contract; the cut ones have `ending` added. Without any token all stay.
    """
    first, last, one, start = (f"{ONE}{word}" for word in ("first", "last", "step", "tokens"))
    mask = names[TOKEN_MASK.name]
    nodes = [
        helper.make_node("Cast", [mask], [f"{start}.numbers"], name=f"{start}.numbers", to=TensorProto.INT32),
        helper.make_node("ArgMax", [f"{start}.numbers"], [last], name=last, axis=-1, keepdims=0, select_last_index=1),
        helper.make_node("Add", [last, one], [f"{start}.end"], name=f"{start}.end"),
    ]
    constants = [_numbers(first, 0), _numbers(one, 1)]
    for name, axis in TOKEN_AXES.items():
        constants.append(_numbers(f"{start}.axis.{name}", axis))
        inputs = [names[name], first, f"{start}.end", f"{start}.axis.{name}"]
        nodes.append(helper.make_node("Slice", inputs, [names[name] + ending], name=names[name] + ending))
    return nodes, constants


def _before_the_picture(nodes: list[NodeProto], text: set[str]) -> list[NodeProto]:
    """The nodes up to the normalised meaning [K, N] of the prompts, which depend on the text alone; none in a graph without
    it, or where they ask how many prompts there are."""
    _, asked = split(nodes, text)
    makers = {name: node for node in asked for name in node.output}
    norms = [node for node in asked if node.op_type == "LayerNormalization"]
    if len(norms) != 1:
        return []
    waiting, found = [norms[0]], list[NodeProto]()
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.append(node)
            waiting += [makers[name] for name in node.input if name in makers]
    outside = {name for node in nodes if node not in asked for name in node.output}
    alone = all(node.op_type != "Shape" and outside.isdisjoint(_before(node, nodes)) for node in found)
    return [node for node in asked if node in found] if alone else []


def _before(node: NodeProto, nodes: list[NodeProto]) -> set[str]:
    """What a node reads that is no widened weight."""
    casts = {name for other in nodes if other.op_type == "Cast" for name in other.output}
    return set(node.input) - casts


def _of_one_prompt(nodes: Iterable[NodeProto], text: set[str]) -> tuple[list[NodeProto], list[TensorProto]]:
    """The nodes with the number of prompts, where one asks for it, as the constant 1, and those constants."""
    kept, ones = [], []
    for node in nodes:
        ends = {attribute.name: attribute.i for attribute in node.attribute}
        if node.op_type == "Shape" and node.input[0] in text and (ends.get("start", 0), ends.get("end")) == (0, 1):
            ones.append(_numbers(node.output[0], 1))
        else:
            kept.append(node)
    return kept, ones


def _body(nodes: list[NodeProto], asked: list[ValueInfoProto], output: ValueInfoProto) -> onnx.GraphProto:
    """One prompt: its slices are cut to its own tokens and get their axis K back (of size 1), the nodes run as they were, K
    leaves the answer again."""
    names = {name for node in nodes for name in node.output} | {value.name for value in asked}
    first, second = (_numbers(f"{ONE}axis.{i}", i) for i in (0, 1))
    slices = [_slice(value) for value in asked]
    cuts, constants = own_tokens({name: f"{ONE}slice.{name}" for name in TOKEN_AXES}, ".own")
    opened = []
    for cut, value in zip(slices, asked):
        source = cut.name + ".own" * (value.name in TOKEN_AXES)
        opened.append(helper.make_node("Unsqueeze", [source, first.name], [ONE + value.name]))
    moved = []
    for node in nodes:
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [ONE + name if name in names else name for name in node.input]
        copy.output[:] = [ONE + name for name in node.output]
        moved.append(copy)
    result = _slice(output)
    closed = helper.make_node("Squeeze", [ONE + output.name, second.name], [result.name])
    return helper.make_graph([*cuts, *opened, *moved, closed], "prompt", slices, [result], [first, second, *constants])


def _numbers(name: str, value: int) -> TensorProto:
    """A constant [1] of int64."""
    return helper.make_tensor(name, TensorProto.INT64, [1], [value])


def _value(name: str, kind: int) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, None)


def _slice(value: ValueInfoProto) -> ValueInfoProto:
    """One prompt's part of a tensor."""
    return _value(f"{ONE}slice.{value.name}", value.type.tensor_type.elem_type)
