"""A reduced graph as it would compute on hardware of its type, made runnable on any CPU.

ONNX Runtime's CPU provider has no bf16 kernels for these graphs, and runs fp16 nodes in float32 with the casts between
them removed, so an overflow stays hidden. Here every reduced result is rounded explicitly: float32 arithmetic, then a
cast to the type and back. Accumulation inside one operator stays float32, as on tensor cores.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from digseg_export.precision import FLOAT, MOVES, Policy, Rewrite


def emulate(model: onnx.ModelProto, policy: Policy, io: dict[str, str]) -> onnx.ModelProto:
    """A float32 graph that rounds where `to_precision(model, policy, io)` computes in the reduced type.

    Its borders are float32 throughout. The input is left alone.
    """
    return _Emulate(model, policy, io).run()


class _Emulate(Rewrite):
    """The same walk as the real rewrite; a value "in the low type" is a float32 tensor holding rounded numbers."""

    def run(self) -> onnx.ModelProto:
        opset = self.model.opset_import[0].version
        model = super().run()
        model.opset_import[0].version = opset
        return model

    def _inputs(self) -> None:
        for value in self.model.graph.input:
            if value.name in self.floats:
                self.where[value.name] = FLOAT

    def _node(self, node: NodeProto) -> None:
        if node.op_type == "Cast":
            self._append(node, FLOAT)
        else:
            super()._node(node)

    def _append(self, node: NodeProto, kind: int) -> None:
        outputs = [name for name in node.output if name in self.floats]
        if kind == FLOAT or node.op_type in MOVES:
            super()._append(node, kind)
            return
        node.output[:] = [f"{name}.exact" if name in outputs else name for name in node.output]
        self.nodes.append(node)
        for name in outputs:
            self._round(f"{name}.exact", name)
            self.where[name] = kind

    def _round(self, source: str, target: str) -> None:
        inner = f"{target}.rounded"
        self.nodes.append(helper.make_node("Cast", [source], [inner], name=f"round/{inner}", to=self.low))
        self.nodes.append(helper.make_node("Cast", [inner], [target], name=f"round/{target}", to=FLOAT))

    def _as(self, name: str, kind: int) -> str:
        if name in self.constants or name in self.stored_reduced:
            return self._constant(name, kind)
        if kind == FLOAT or self.where[name] == kind:
            return name
        if (name, kind) not in self.cast_names:
            self.cast_names[name, kind] = f"{name}.low"
            self._round(name, f"{name}.low")
            self.casts += 1
        return self.cast_names[name, kind]

    def _constant(self, name: str, kind: int) -> str:
        if name in self.stored_reduced:
            return super()._constant(name, FLOAT)  # stored rounded
        lowered = super()._constant(name, kind)
        if kind != FLOAT and self.extra[lowered].data_type != FLOAT:
            rounded = numpy_helper.to_array(self.extra[lowered]).astype(np.float32)
            self.extra[lowered] = numpy_helper.from_array(rounded, lowered)
        return lowered

    def _outputs(self) -> None:
        return
