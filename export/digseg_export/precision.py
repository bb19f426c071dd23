"""Precision as a property of the graph: a float32 ONNX model is rewritten to fp16 or bf16 with float32 islands.

TensorRT 11 has no fp16 builder flag: it builds what the graph says. The islands are decided here, in one policy, and
written with their reasons into the bundle.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from digseg_engine.errors import UsageError
from digseg_engine.precisions import PLAIN, USUAL, PrecisionSpec, spec_of

FLOAT = TensorProto.FLOAT
ISLANDS = {
    "Softmax": "exponentials and their sum lose small attention weights in half precision",
    "InstanceNormalization": "group-norm statistics: squares of activations above 256 overflow fp16",
    "LayerNormalization": "norm statistics: squares of activations above 256 overflow fp16",
    "ReduceMean": "a mean over many values drifts in half precision",
    "ReduceSum": "a sum over many values overflows in half precision",
    "Pow": "powers overflow in half precision",
    "Exp": "exponentials overflow in half precision",
    "Sqrt": "roots of small variances lose their digits in half precision",
    "Range": "positions above 2048 are not exact in fp16",
    "ConstantOfShape": "fills are typed by their attribute",
}
LOGITS = "the decision border at 0 decides the mask, so the last layer computes in float32"
MOVES = {
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Transpose",
    "DepthToSpace",
    "Identity",
    "Slice",
    "Cast",
    "Flatten",
    "Gather",
}
SENTINEL, HALF_MAX = 1e38, 65504.0
FLOAT_ONLY_INPUTS = {"Resize": (1, 2)}  # roi and scales are float32 by the operator's definition


@dataclass
class Policy:
    """What stays in float32 and why: op kinds, and single nodes by name (measured ranges, bisect, last layer)."""

    precision: str
    kinds: dict[str, str] = field(default_factory=lambda: dict(ISLANDS))
    nodes: dict[str, str] = field(default_factory=dict)

    def reason(self, node: NodeProto) -> str | None:
        return self.nodes.get(node.name) or self.kinds.get(node.op_type)


def type_of(spec: PrecisionSpec) -> int:
    """The number of a precision's type in ONNX."""
    return int(TensorProto.DataType.Value(spec.onnx))


def to_precision(model: onnx.ModelProto, policy: Policy, io: dict[str, str]) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Rewrite a float32 model; the input is left alone.

    io: dtype of each graph border from the contract ("float32", "graph", ...). Returns the new model and a report
    {name, islands: {op kind: {count, reason}}, nodes: {node: reason}, casts}.
    """
    if policy.precision == PLAIN.name:
        return model, {"name": PLAIN.name, "islands": {}, "nodes": {}, "casts": 0}
    rewrite = Rewrite(model, policy, io)
    return rewrite.run(), rewrite.report()


def last_layer(model: onnx.ModelProto, reason: str = LOGITS) -> dict[str, str]:
    """The node that computes each output, seen through pure data movement: {node name: reason}."""
    makers = {name: node for node in model.graph.node for name in node.output}
    found = {}
    for output in model.graph.output:
        node = makers[output.name]
        while node.op_type in MOVES and node.input[0] in makers:
            node = makers[node.input[0]]
        found[node.name] = reason
    return found


class Rewrite:
    """One pass over the nodes in order; `where` says in which float type each tensor exists."""

    def __init__(self, model: onnx.ModelProto, policy: Policy, io: dict[str, str]) -> None:
        self.policy, self.io = policy, io
        self.spec = spec_of(policy.precision)
        self.low = type_of(self.spec)
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=False)
        values = [*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output]
        self.floats = {v.name for v in values if v.type.tensor_type.elem_type == FLOAT}
        self.constants = {t.name: t for t in self.model.graph.initializer}
        self.stored_reduced = {
            n.output[0]: n for n in self.model.graph.node if n.op_type == "Cast" and self._is_stored_reduced(n)
        }
        self.widened: dict[str, NodeProto] = {}  # of those stored reduced, those needed in float32
        self.floats |= {name for name, t in self.constants.items() if t.data_type == FLOAT}
        self.where: dict[str, int] = {}
        self.cast_names: dict[tuple[str, int], str] = {}
        self.nodes: list[NodeProto] = []
        self.extra: dict[str, TensorProto] = {}
        self.islands: Counter[str] = Counter()
        self.named: dict[str, str] = {}
        self.casts = 0

    def run(self) -> onnx.ModelProto:
        graph = self.model.graph
        self._inputs()
        for node in graph.node:
            if node.output[0] not in self.stored_reduced:
                self._node(node)
        self._outputs()
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend([*self.widened.values(), *self.nodes])
        graph.initializer.extend(self._used_constants())
        self.model.opset_import[0].version = max(self.model.opset_import[0].version, self.spec.opset)
        return self.model

    def report(self) -> dict[str, Any]:
        kinds = {
            kind: {"count": n, "reason": self.policy.kinds.get(kind, "single nodes, see `nodes`")}
            for kind, n in sorted(self.islands.items())
        }
        return {"name": self.policy.precision, "islands": kinds, "nodes": self.named, "casts": self.casts}

    def _is_stored_reduced(self, node: NodeProto) -> bool:
        """Is this the cast of a constant that is stored in the reduced type already (see `external_data.py`)?"""
        tensor = self.constants.get(node.input[0])
        return tensor is not None and tensor.data_type == self.low

    def _inputs(self) -> None:
        for value in self.model.graph.input:
            if value.name in self.floats:
                kind = self.low if self.io[value.name] == "graph" else FLOAT
                value.type.tensor_type.elem_type = kind
                self.where[value.name] = kind

    def _node(self, node: NodeProto) -> None:
        if node.op_type == "Cast" and _attribute(node, "to") == FLOAT:
            _set_attribute(node, "to", self.low)
            self._append(node, self.low)
            return
        produces = any(name in self.floats for name in node.output)
        consumes = any(name in self.floats for name in node.input)
        if not (produces or consumes):
            self.nodes.append(node)
            return
        island = self.policy.reason(node) is not None
        kind = FLOAT if island else self.low
        if island:
            self.islands[node.op_type] += 1
            if node.name in self.policy.nodes:
                self.named[node.name] = self.policy.nodes[node.name]
        for i, name in enumerate(node.input):
            if name in self.floats:
                fixed = i in FLOAT_ONLY_INPUTS.get(node.op_type, ())
                node.input[i] = self._as(name, FLOAT if fixed else kind)
        self._append(node, kind)

    def _append(self, node: NodeProto, kind: int) -> None:
        self.nodes.append(node)
        for name in node.output:
            if name in self.floats:
                self.where[name] = kind

    def _as(self, name: str, kind: int) -> str:
        """The tensor `name` in type `kind`, converted or cast once."""
        if name in self.constants or name in self.stored_reduced:
            return self._constant(name, kind)
        if self.where[name] == kind:
            return name
        if (name, kind) not in self.cast_names:
            cast_name = f"{name}.{TensorProto.DataType.Name(kind).lower()}"
            self.nodes.append(helper.make_node("Cast", [name], [cast_name], name=f"cast/{cast_name}", to=kind))
            self.cast_names[name, kind] = cast_name
            self.casts += 1
        return self.cast_names[name, kind]

    def _constant(self, name: str, kind: int) -> str:
        if name in self.stored_reduced:
            if kind != FLOAT:
                return str(self.stored_reduced[name].input[0])
            self.widened[name] = self.stored_reduced[name]
            return name
        if kind == FLOAT:
            self.extra[name] = self.constants[name]
            return name
        lowered = f"{name}.{self.policy.precision}"
        if lowered not in self.extra:
            self.extra[lowered] = lower(self.constants[name], lowered, kind)
        return lowered

    def _outputs(self) -> None:
        """Give every float output the type the contract asks for, keeping its name."""
        for value in self.model.graph.output:
            if value.name not in self.floats:
                continue
            kind = self.low if self.io[value.name] == "graph" else FLOAT
            value.type.tensor_type.elem_type = kind
            if self.where[value.name] != kind:
                inner = f"{value.name}.inner"
                for node in self.nodes:
                    node.input[:] = [inner if name == value.name else name for name in node.input]
                    node.output[:] = [inner if name == value.name else name for name in node.output]
                self.nodes.append(helper.make_node("Cast", [inner], [value.name], name=f"cast/{value.name}", to=kind))
                self.casts += 1

    def _used_constants(self) -> list[TensorProto]:
        used = {name for node in (*self.widened.values(), *self.nodes) for name in node.input}
        integers = [t for name, t in self.constants.items() if t.data_type != FLOAT and name in used]
        return integers + [tensor for name, tensor in self.extra.items() if name in used]


def lower(tensor: TensorProto, name: str, kind: int) -> TensorProto:
    """A float32 constant in a half type. Raises UsageError when a weight does not fit its range."""
    values = numpy_helper.to_array(tensor)
    values = np.where(np.abs(values) > SENTINEL, np.sign(values) * HALF_MAX, values)  # "minus infinity" of a mask
    return numpy_helper.from_array(reduced(values, kind, tensor.name), name)


def reduced(values: NDArray[np.float32], kind: int, name: str) -> NDArray[Any]:
    """Weights in a storage type. Raises UsageError, with their name, when they do not fit its range."""
    if kind == TensorProto.BFLOAT16:
        import ml_dtypes

        return values.astype(ml_dtypes.bfloat16)
    if kind != TensorProto.FLOAT16:
        return np.ascontiguousarray(values)
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not np.isfinite(half).all() and np.isfinite(values).all():
        raise UsageError(f"weight {name} reaches {np.abs(values).max():g}, fp16 ends at 65504; {USUAL.else_try}")
    return half


def widen(model: onnx.ModelProto, stored: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """A reduced graph for the CPU: same weights file, one Cast behind each stored weight, float32 arithmetic.

    `stored` is the reduced model as saved, so that its weights refer to the external data file. Runtimes fold the casts
    when they load the graph.
    """
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    by_name = {tensor.name: tensor for tensor in stored.graph.initializer}
    casts, constants = [], []
    for tensor in wide.graph.initializer:
        low = f"{tensor.name}.{precision}"
        if low in by_name:
            constants.append(by_name[low])
            casts.append(helper.make_node("Cast", [low], [tensor.name], name=f"widen/{tensor.name}", to=FLOAT))
        else:
            constants.append(by_name.get(tensor.name, tensor))
    nodes = list(wide.graph.node)
    del wide.graph.node[:], wide.graph.initializer[:]
    wide.graph.node.extend([*casts, *nodes])
    wide.graph.initializer.extend(constants)
    return wide


def _attribute(node: NodeProto, name: str) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), None)


def _set_attribute(node: NodeProto, name: str, value: int) -> None:
    for attribute in node.attribute:
        if attribute.name == name:
            attribute.i = value
