"""A bundle of hand-made graphs with the contract's borders: parsed in milliseconds and built in about a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from digseg_engine.bundle import MANIFEST, Bundle, finish, open_bundle, writing
from digseg_engine.contract import (
    BUNDLE_FORMAT,
    IMAGE_ENCODER,
    MASK_DECODER,
    PRESENCE,
    TEXT_ENCODER,
    GraphSpec,
    contract_json,
    graphs_of,
)

SIZES = {"S": 2, "heads": 2, "d": 4, "Co": 4, "M": 4}
SPANS = {"B": (1, 1, 2), "K": (1, 3, 7), "L": (8, 16, 32), "H": (32, 64, 96), "W": (32, 64, 64)}
STRIDE, WORDS = 8, 64
KINDS = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16}
NAMES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "bool": TensorProto.BOOL}


class Sketch:
    """Nodes and constants of a graph as they are added; what is not float32 by the contract is in `kind`."""

    def __init__(self, precision: str) -> None:
        self.kind, self.nodes, self.constants = KINDS[precision], [], []
        self._random = np.random.default_rng(0)

    def add(self, op: str, *inputs: str, out: str = "", **attributes: object) -> str:
        name = out or f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=f"node_{name}", **attributes))
        return name

    def weight(self, *shape: int) -> str:
        values = self._random.normal(0, 0.2, shape).astype(helper.tensor_dtype_to_np_dtype(self.kind))
        return self.constant(values)

    def constant(self, values: np.ndarray) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def exact(self, op: str, *inputs: str, **attributes: object) -> str:
        """An operator in float32 whatever the rest is."""
        if self.kind == TensorProto.FLOAT:
            return self.add(op, *inputs, **attributes)
        wide = self.add("Cast", inputs[0], to=TensorProto.FLOAT)
        return self.add("Cast", self.add(op, wide, *inputs[1:], **attributes), to=self.kind)

    def save(self, spec: GraphSpec, path: Path) -> None:
        def value(tensor):
            axes = [SIZES.get(a, a if isinstance(a, int) else str(a)) for a in tensor.axes]
            return helper.make_tensor_value_info(tensor.name, NAMES.get(tensor.dtype, self.kind), axes)

        graph = helper.make_graph(
            self.nodes, path.stem, [*map(value, spec.inputs)], [*map(value, spec.outputs)], self.constants
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.save_model(
            model, str(path), save_as_external_data=True, location=path.with_suffix(".data").name, size_threshold=64
        )


def text_encoder(sketch: Sketch) -> None:
    """Embedding, padding left out, one product for each answer."""
    width = 16
    words = sketch.add("Gather", sketch.weight(WORDS, width), "token_ids")
    seen = sketch.add("Unsqueeze", sketch.add("Cast", "token_mask", to=sketch.kind), sketch.ints(2))
    words = sketch.add("Mul", words, seen)
    for name, size, order in (
        ("text_keys", SIZES["d"], [0, 2, 3, 4, 1]),
        ("text_values", SIZES["Co"], [0, 2, 3, 1, 4]),
    ):
        made = sketch.add("MatMul", words, sketch.weight(width, SIZES["S"] * SIZES["heads"] * size))
        made = sketch.add("Reshape", made, sketch.ints(0, 0, SIZES["S"], SIZES["heads"], size))
        sketch.add("Transpose", made, out=name, perm=order)


def image_encoder(sketch: Sketch) -> None:
    """A convolution of the picture, as coarse as the stride."""
    picture = "image" if sketch.kind == TensorProto.FLOAT else sketch.add("Cast", "image", to=sketch.kind)
    kernel = sketch.weight(SIZES["M"], 3, STRIDE, STRIDE)
    sketch.add("Conv", picture, kernel, out="encoding", strides=[STRIDE, STRIDE])


def heard(sketch: Sketch) -> str:
    """What a softmax over the tokens leaves of the text, for every channel of the encoding: [K, M]."""
    weights = sketch.exact("Softmax", sketch.add("MatMul", sketch.weight(1, SIZES["d"]), "text_keys"), axis=-1)
    columns = sketch.add("Reshape", sketch.add("MatMul", weights, "text_values"), sketch.ints(0, -1))
    columns = sketch.add("MatMul", columns, sketch.weight(SIZES["S"] * SIZES["heads"] * SIZES["Co"], SIZES["M"]))
    asked = sketch.exact("ReduceMax", sketch.add("Cast", "token_mask", to=sketch.kind), sketch.ints(1), keepdims=1)
    return sketch.add("Mul", columns, asked)


def answered(sketch: Sketch) -> str:
    """Channels of the encoding times the text: [B, K, N]."""
    flat = sketch.add("Reshape", "encoding", sketch.ints(0, SIZES["M"], -1))
    return sketch.add("MatMul", heard(sketch), flat)


def mask_decoder(sketch: Sketch) -> None:
    """One logit for every cell."""
    answer = answered(sketch)
    shape = [sketch.add("Shape", answer, start=0, end=2), sketch.add("Shape", "encoding", start=2, end=4)]
    answer = sketch.add("Reshape", answer, sketch.add("Concat", *shape, axis=0))
    sketch.add("Cast", answer, out="logits", to=TensorProto.FLOAT)


def presence(sketch: Sketch) -> None:
    """The largest of them."""
    most = sketch.exact("ReduceMax", answered(sketch), sketch.ints(2), keepdims=0)
    sketch.add("Cast", most, out="presence", to=TensorProto.FLOAT)


MAKERS = {TEXT_ENCODER: text_encoder, IMAGE_ENCODER: image_encoder, PRESENCE: presence, MASK_DECODER: mask_decoder}


def small_bundle(
    folder: Path, precision: str = "fp16", spans: dict | None = None, says: str | None = None, presence: bool = True
) -> Bundle:
    """The bundle in form: no checkpoint behind it, no golden sample. says: the precision its manifest names; presence: it has
    that graph."""
    specs = graphs_of(presence).values()
    student = {"heads": SIZES["heads"], "width": SIZES["heads"] * SIZES["d"], "head_width": SIZES["Co"]}
    with writing(folder) as room:
        for spec in specs:
            sketch = Sketch(precision)
            MAKERS[spec](sketch)
            sketch.save(spec, room / spec.file)
        finish(room, {
            "format": BUNDLE_FORMAT, "contract": contract_json(presence), "precision": {"name": says or precision, "graphs": {}},
            "shapes": {axis: dict(zip(("min", "opt", "max"), span)) for axis, span in {**SPANS, **(spans or {})}.items()},
            "verification": {"limits": {"relative": 0.02, "iou": 0.99}},
            "model": {"image_size": 64, "stride": STRIDE, "scales": SIZES["S"], "encoding": SIZES["M"],
                      "student": student},
            "graphs": {spec.file: {"weights": {"FLOAT16": 1024}} for spec in specs},
            **({"presence": {"threshold": 0.0}} if presence else {}),
        })  # fmt: skip
    return open_bundle(folder)


def replant(bundle: Bundle, spec: GraphSpec, change: Callable[[onnx.ModelProto], None]) -> Bundle:
    """The bundle with one graph changed, and hashed again."""
    path = bundle.folder / spec.file
    model = onnx.load(str(path), load_external_data=False)
    change(model)
    onnx.save_model(model, str(path))
    (bundle.folder / MANIFEST).unlink()
    finish(bundle.folder, {name: value for name, value in bundle.manifest.items() if name != "files"})
    return open_bundle(bundle.folder)
