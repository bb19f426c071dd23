"""Mask decoder, presence and the text of all names in one graph, `labels.onnx`: an encoding in, a label map out.

The nodes of both graphs are taken as they were converted, so that a folded graph computes what the open ones do. What no name
changes stands outside; the rest is asked of the names chunk by chunk, by a standard `Scan` where there are several, so that
memory does not grow with the names. Logits are enlarged before they are compared: a border between two labels lies where their
logits meet.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from digseg_engine.contract import (
    ABSENT,
    ENCODING,
    FOLDED_CHUNK,
    LABEL_MAP,
    LOGITS,
    PRESENCE_LOGITS,
    SCORES,
    TEXT,
    TEXT_KEYS,
    TEXT_VALUES,
    TOKEN_MASK,
    Folding,
)
from digseg_export.precision import FLOAT
from digseg_export.scan_prompts import split

CHUNK = FOLDED_CHUNK
ENDINGS = {
    TensorProto.FLOAT16: ".fp16",
    TensorProto.BFLOAT16: ".bf16",
}  # of constants stored reduced, see `precision.widen`
INT, LONG = TensorProto.INT32, TensorProto.INT64
MASKS, THERE = "masks", "presence"  # prefixes of the names of either graph


@dataclass(frozen=True)
class Text:
    """Folded text of K names: keys [K, S, H, d, L], values [K, S, H, L, Co], mask [K, L]."""

    keys: NDArray[np.float32]
    values: NDArray[np.float32]
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class Sizes:
    """Pixels of one cell of the encoding along a side, and of one logit; the logit below which a name is not there (None: none
    is turned away)."""

    stride: int
    cell: int
    threshold: float | None


@dataclass
class Parts:
    """The nodes and constants of a graph that is being put together."""

    nodes: list[NodeProto] = field(default_factory=list)
    constants: dict[str, TensorProto] = field(default_factory=dict)

    def add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """One node, named after its output, which is returned."""
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, values: Any, dtype: Any = None) -> str:
        """A constant, which is returned."""
        self.constants[name] = numpy_helper.from_array(np.asarray(values, dtype), name)
        return name


def fold_names(
    masks: onnx.ModelProto, presence: onnx.ModelProto | None, text: Text, folding: Folding, sizes: Sizes, chunk: int = CHUNK
) -> onnx.ModelProto:  # fmt: skip
    """The graph of a folded bundle. masks, presence: the converted graphs (None: a model without the readout). The inputs are
    left alone."""
    parts, inside = Parts(), Parts()
    for prefix, model in ((MASKS, masks), (THERE, presence)):
        if model is not None:
            shared, asked = _moved(model, prefix)
            parts.nodes += shared
            inside.nodes += asked
            parts.constants |= {t.name: t for t in _constants(model, prefix)}
    _small(parts, sizes)
    rounds = -(-folding.names // chunk)
    each = -(-folding.names // rounds)
    whole = _text(parts, masks, text, rounds, each)
    _answers(inside, folding, presence is not None, sizes)
    if rounds == 1:
        _at_once(parts, inside, whole, folding, presence is not None)
    else:
        _scanned(parts, inside, whole, folding, presence is not None, each)
    parts.add("Cast", ["label"], LABEL_MAP.name, to=_label_type(folding))
    return _model(masks, parts, folding, presence is not None)


def _moved(model: onnx.ModelProto, prefix: str) -> tuple[list[NodeProto], list[NodeProto]]:
    """The nodes of a graph under names of its own: (those that no name changes, the others)."""
    text = {tensor.name for tensor in TEXT}
    kept = text | {ENCODING.name}
    moved = []
    for node in model.graph.node:
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.name = f"{prefix}/{node.name}"
        for names in (copy.input, copy.output):
            names[:] = [name if not name or name in kept else f"{prefix}/{name}" for name in names]
        moved.append(copy)
    return split(moved, text)


def _constants(model: onnx.ModelProto, prefix: str) -> list[TensorProto]:
    found = []
    for tensor in model.graph.initializer:
        copy = TensorProto()
        copy.CopyFrom(tensor)
        copy.name = f"{prefix}/{tensor.name}"
        found.append(copy)
    return found


def _small(parts: Parts, sizes: Sizes) -> None:
    """Constants that the nodes below share."""
    ratio = np.float32(sizes.cell)
    parts.constant("enlarge", [1, 1, ratio, ratio], np.float32)
    parts.constant("map.scale", [1, sizes.stride, sizes.stride], np.int64)
    parts.constant("zero", 0, np.float32)
    parts.constant("one", 1, np.float32)
    parts.constant("plane.axes", [2, 3], np.int64)
    parts.constant("name.axis", [1], np.int64)
    parts.constant("first.label", [1], np.int32)
    parts.constant("absent", ABSENT, np.float32)
    if sizes.threshold is not None:
        parts.constant("threshold", sizes.threshold, np.float32)


def _text(parts: Parts, masks: onnx.ModelProto, text: Text, rounds: int, each: int) -> list[str]:
    """The text of all names, [K, ...] or, of several rounds, [rounds, each, ...]; in the type that the graph takes."""
    kinds = {value.name: value.type.tensor_type.elem_type for value in masks.graph.input}
    found = []
    for tensor, values in ((TEXT_KEYS, text.keys), (TEXT_VALUES, text.values), (TOKEN_MASK, text.mask)):
        name = tensor.name
        stored = f"{name}{ENDINGS.get(kinds[name], '')}"
        parts.constants[stored] = numpy_helper.from_array(
            np.ascontiguousarray(values, helper.tensor_dtype_to_np_dtype(kinds[name])), stored
        )
        if rounds > 1:
            if rounds * each > len(values):  # the last name again
                numbers = np.minimum(np.arange(rounds * each), len(values) - 1)
                stored = parts.add(
                    "Gather", [stored, parts.constant(f"{name}.numbers", numbers, np.int64)], f"{name}.filled"
                )
            shape = parts.constant(f"{name}.shape", [rounds, each, *values.shape[1:]], np.int64)
            stored = parts.add("Reshape", [stored, shape], f"{name}.rounds")
        found.append(stored)
    return found


def _answers(parts: Parts, folding: Folding, presence: bool, sizes: Sizes) -> None:
    """`logits` of the names that are there, and their `scores`, behind the nodes that decode."""
    decoded, gated = f"{MASKS}/{LOGITS.name}", presence and sizes.threshold is not None
    if gated:
        parts.add("Less", [f"{THERE}/{PRESENCE_LOGITS.name}", "threshold"], "absent.names")
        parts.add("Unsqueeze", ["absent.names", "plane.axes"], "absent.planes")
        parts.add("Where", ["absent.planes", "absent", decoded], "found")
    else:
        parts.add("Identity", [decoded], "found")
    if folding.labels_only:
        return
    parts.add("Sigmoid", ["found"], "sure")
    parts.add("Greater", ["found", "zero"], "above")
    parts.add("Cast", ["above"], "inside", to=FLOAT)
    parts.add("Mul", ["sure", "inside"], "sure.inside")
    parts.add("ReduceSum", ["sure.inside", "plane.axes"], "mass", keepdims=0)
    parts.add("ReduceSum", ["inside", "plane.axes"], "cells", keepdims=0)
    parts.add("Max", ["cells", "one"], "cells.least")
    parts.add("Div", ["mass", "cells.least"], "score")


def _compared(parts: Parts, logits: str, best: str, label: str | None, base: str) -> None:
    """`new.best` and `new.label` of a chunk's logits [B, C, h, w], against the best logit so far (0 at first) and its label."""
    parts.add("Resize", [logits, "", "enlarge"], "large", mode="linear", coordinate_transformation_mode="half_pixel")
    parts.add("ReduceMax", ["large", "name.axis"], "top", keepdims=0)
    parts.add("ArgMax", ["large"], "winner", axis=1, keepdims=0)
    parts.add("Cast", ["winner"], "winner.number", to=INT)
    parts.add("Add", ["winner.number", base], "winner.label")
    parts.add("Greater", ["top", best], "wins")
    if label is None:
        parts.add("Cast", ["wins"], "wins.number", to=INT)
        parts.add("Mul", ["winner.label", "wins.number"], "label")
        return
    parts.add("Where", ["wins", "winner.label", label], "new.label")
    parts.add("Where", ["wins", "top", best], "new.best")


def _at_once(parts: Parts, inside: Parts, whole: list[str], folding: Folding, presence: bool) -> None:
    """All names in one round: no loop, nothing carried."""
    named = dict(zip([tensor.name for tensor in TEXT], whole))
    for node in inside.nodes:
        node.input[:] = [named.get(name, name) for name in node.input]
    parts.nodes += inside.nodes
    if presence:
        parts.add("Identity", [f"{THERE}/{PRESENCE_LOGITS.name}"], PRESENCE_LOGITS.name)
    if not folding.labels_only:
        parts.add("Identity", ["found"], LOGITS.name)
        parts.add("Identity", ["score"], SCORES.name)
    _compared(parts, "found", "zero", None, "first.label")


def _scanned(parts: Parts, inside: Parts, whole: list[str], folding: Folding, presence: bool, each: int) -> None:
    """The names in rounds. What is answered of every name is stacked; the label map is compared in the same loop, or, where the
    logits are there anyway, in one of its own, which a runtime that is not asked for the map leaves out."""
    _empty_map(parts)
    step = parts.constant("step", [each], np.int32)
    text = [_value(tensor.name, kind) for tensor, kind in zip(TEXT, _kinds(parts, whole))]
    state = [_value("best", FLOAT), _value("so.far", INT), _value("base", INT)]
    stacked = [(f"{THERE}/{PRESENCE_LOGITS.name}", "presence.rounds")] if presence else []
    stacked += [] if folding.labels_only else [("found", "logits.rounds"), ("score", "scores.rounds")]
    outputs = [_value(f"{name}.of.round", FLOAT) for name, _ in stacked]
    comparing = inside if folding.labels_only else Parts()
    logits = "found" if folding.labels_only else "logits.of.one"
    _compared(comparing, logits, "best", "so.far", "base")
    comparing.add("Add", ["base", step], "new.base")
    for name, _ in stacked:
        inside.add("Identity", [name], f"{name}.of.round")
    new = [_value("new.best", FLOAT), _value("new.label", INT), _value("new.base", INT)]
    first, ends = ["empty.best", "empty.label", "first.label"], ["last.best", "label", "last.base"]
    if folding.labels_only:
        body = helper.make_graph(inside.nodes, "names", [*state, *text], [*new, *outputs])
        _scan(parts, "names", body, [*first, *whole], [*ends, *(name for _, name in stacked)])
    else:
        body = helper.make_graph(inside.nodes, "names", text, outputs)
        _scan(parts, "names", body, whole, [name for _, name in stacked])
        body = helper.make_graph(comparing.nodes, "compared", [*state, _value(logits, FLOAT)], new)
        _scan(parts, "compared", body, [*first, "logits.rounds"], ends)
    _unstacked(parts, folding, presence)


def _empty_map(parts: Parts) -> None:
    """`empty.best` and `empty.label`, [B, H, W] of zeros."""
    parts.add("Shape", [ENCODING.name], "encoding.shape")
    parts.add("Gather", ["encoding.shape", parts.constant("map.axes", [0, 2, 3], np.int64)], "map.cells")
    parts.add("Mul", ["map.cells", "map.scale"], "map.shape")
    parts.add("ConstantOfShape", ["map.shape"], "empty.best", value=helper.make_tensor("value", FLOAT, [1], [0.0]))
    parts.add("ConstantOfShape", ["map.shape"], "empty.label", value=helper.make_tensor("value", INT, [1], [0]))


def _unstacked(parts: Parts, folding: Folding, presence: bool) -> None:
    """[rounds, B, each, ...] of what is answered of every name -> [B, K, ...]."""
    parts.constant("names.first", [0], np.int64)
    parts.constant("names.end", [folding.names], np.int64)
    flat = parts.constant("flat.shape", [0, -1], np.int64)

    def cut(name: str, output: str) -> None:
        parts.add("Slice", [name, "names.first", "names.end", "name.axis"], output)

    for wanted, name in ((presence, PRESENCE_LOGITS.name), (not folding.labels_only, SCORES.name)):
        if wanted:
            parts.add("Transpose", [f"{name}.rounds"], f"{name}.turned", perm=[1, 0, 2])
            cut(parts.add("Reshape", [f"{name}.turned", flat], f"{name}.filled"), name)
    if not folding.labels_only:
        parts.add("Transpose", ["logits.rounds"], "logits.turned", perm=[1, 0, 2, 3, 4])
        parts.add("Shape", ["logits.turned"], "logits.sides")
        sides = parts.add("Gather", ["logits.sides", parts.constant("side.axes", [3, 4], np.int64)], "logits.plane")
        pictures = parts.add("Gather", ["logits.sides", "names.first"], "logits.pictures")
        names = parts.constant("all.names", [-1], np.int64)
        parts.add("Concat", [pictures, names, sides], "logits.shape", axis=0)
        cut(parts.add("Reshape", ["logits.turned", "logits.shape"], "logits.filled"), LOGITS.name)


def _scan(parts: Parts, name: str, body: onnx.GraphProto, inputs: list[str], outputs: list[str]) -> None:
    """A loop over the first axis of those inputs that are not carried."""
    carried = sum(value.name.startswith("new.") for value in body.output)
    parts.nodes.append(
        helper.make_node("Scan", inputs, outputs, name=name, body=body, num_scan_inputs=len(inputs) - carried)
    )


def _value(name: str, kind: int) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, None)


def _kinds(parts: Parts, names: list[str]) -> list[int]:
    """Element types of what holds the text."""
    makers = {node.output[0]: node for node in parts.nodes}
    found = []
    for name in names:
        while name in makers:
            name = makers[name].input[0]
        found.append(parts.constants[name].data_type)
    return found


def _label_type(folding: Folding) -> int:
    return int(TensorProto.UINT8 if folding.label_dtype == "uint8" else TensorProto.UINT16)


def _model(masks: onnx.ModelProto, parts: Parts, folding: Folding, presence: bool) -> onnx.ModelProto:
    """The graph with the borders of the contract, the inputs and outputs that it has, and what it uses of the constants."""
    model = onnx.ModelProto()
    model.CopyFrom(masks)
    graph = model.graph
    encoding = next(value for value in masks.graph.input if value.name == ENCODING.name)
    outputs = [helper.make_tensor_value_info(LABEL_MAP.name, _label_type(folding), ["B", "H", "W"])]
    if not folding.labels_only:
        outputs.append(helper.make_tensor_value_info(LOGITS.name, FLOAT, ["B", folding.names, "h", "w"]))
        outputs.append(helper.make_tensor_value_info(SCORES.name, FLOAT, ["B", folding.names]))
    if presence:
        outputs.append(helper.make_tensor_value_info(PRESENCE_LOGITS.name, FLOAT, ["B", folding.names]))
    used = set(_used(parts.nodes))
    del graph.node[:], graph.initializer[:], graph.input[:], graph.output[:], graph.value_info[:]
    graph.node.extend(parts.nodes)
    graph.initializer.extend(tensor for name, tensor in parts.constants.items() if name in used)
    graph.input.append(encoding)
    graph.output.extend(outputs)
    return model


def _used(nodes: Any) -> list[str]:
    """Every name that a node reads, in bodies too."""
    found = []
    for node in nodes:
        found += list(node.input)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found += _used(attribute.g.node)
    return found
