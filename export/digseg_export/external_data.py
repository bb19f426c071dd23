"""Weights of a large model: from the checkpoint straight into the bundle's data file, one at a time, in the stored type.

A graph traced from stand-ins (see `disk_offload.py`) names its large constants and holds none of them.
`write_external_data` writes them once; every form of the graph (reduced, float32 for the CPU, rounded, with ranges) then refers
to the same bytes. The float32 graph reads them through one `Cast` each, at its start: run without graph optimisations, ONNX
Runtime maps the file and widens a constant when its node comes up.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import onnx
import onnx_ir
from onnx import TensorProto, helper
from torch import nn

from digseg_engine.precisions import spec_of
from digseg_export.disk_offload import Stored, stand_ins
from digseg_export.precision import FLOAT, reduced, type_of

ALIGN = 4096


def describe(program: Any, module: nn.Module) -> onnx.ModelProto:
    """The optimised graph of an exported program whose stand-ins are named, not stored."""
    from onnxscript.optimizer import optimize_ir

    model = program.model
    for name in stand_ins(module):
        value = model.graph.initializers.get(name)
        if value is not None:
            value.const_value = onnx_ir.ExternalTensor(
                name, 0, value.const_value.nbytes, value.const_value.dtype, shape=value.const_value.shape, name=name
            )

    def should_fold(node: Any) -> bool | None:
        named = any(i is not None and isinstance(i.const_value, onnx_ir.ExternalTensor) for i in node.inputs)
        return False if named else None

    optimize_ir(model, should_fold=should_fold)
    proto: onnx.ModelProto = onnx_ir.to_proto(model)
    return proto


def write_external_data(model: onnx.ModelProto, module: nn.Module, data: Path, precision: str) -> None:
    """Write the named constants of `model` into `data` and let the graph refer to them. In place."""
    spec = spec_of(precision)
    kind = type_of(spec) if spec.reduced else FLOAT
    waiting = {name: p.stored for name, p in stand_ins(module).items()}  # type: ignore[attr-defined]
    named = {t.name: t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL}
    turned, nodes = _turned(model.graph, set(named))
    used = {name for node in nodes for name in node.input}
    wanted: list[tuple[str, str, Any]] = [(name, name, None) for name in named if name in used]
    wanted += [(name, source, order) for name, (source, order) in turned.items()]
    constants = [t for t in model.graph.initializer if t.name not in named]
    casts = []
    with data.open("wb") as file:
        for name, source, order in wanted:
            stored_name = f"{name}.{precision}" if kind != FLOAT else name
            constants.append(_write(file, data.name, stored_name, waiting[source], order, kind))
            if kind != FLOAT:
                casts.append(helper.make_node("Cast", [stored_name], [name], name=f"widen/{name}", to=FLOAT))
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend([*casts, *nodes])
    model.graph.initializer.extend(constants)


def _turned(graph: onnx.GraphProto, named: set[str]) -> tuple[dict[str, tuple[str, list[int]]], list[onnx.NodeProto]]:
    """({output: (constant, axes)} of transposed constants, all other nodes)."""
    turned, nodes = {}, []
    for node in graph.node:
        if node.op_type == "Transpose" and node.input[0] in named:
            turned[node.output[0]] = (node.input[0], list(helper.get_attribute_value(node.attribute[0])))
        else:
            nodes.append(node)
    return turned, nodes


def _write(file: BinaryIO, location: str, name: str, stored: Stored, order: Any, kind: int) -> TensorProto:
    values = stored.read().numpy()
    body = reduced(values.transpose(order) if order else values, kind, stored.key)
    file.write(bytes(-file.tell() % ALIGN))
    offset, shape = file.tell(), body.shape
    body.tofile(file)
    tensor = TensorProto(name=name, data_type=kind, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", body.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor
