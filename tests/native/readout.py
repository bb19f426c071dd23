"""Gives a copy of an exported bundle a presence graph made by hand, so that what the runtimes do with presence is tested whatever
the bundle's model was trained for. It says something of each prompt and a little of the picture; nothing of what is there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from profiled import list_again
from safetensors.numpy import load_file, save_file

from digseg_engine.contract import IMAGE_ENCODER, PRESENCE, TEXT_ENCODER

TYPES = {"float32": TensorProto.FLOAT, "graph": TensorProto.FLOAT, "bool": TensorProto.BOOL}


def presence_graph() -> onnx.ModelProto:
    """presence [B, K] = 8 sin(40 mean(values of prompt k)) + mean(encoding of picture b), in float32 as a CPU runs it."""
    tensors = [
        [helper.make_tensor_value_info(spec.name, TYPES[spec.dtype], list(spec.axes)) for spec in specs]
        for specs in (PRESENCE.inputs, PRESENCE.outputs)
    ]
    numbers = {
        "forty": np.float32(40),
        "eight": np.float32(8),
        "one": np.array([1], np.int64),
        "zero": np.array([0], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["token_mask"], ["live"], to=TensorProto.FLOAT),  # [K, L]
        helper.make_node("ReduceSum", ["live", "one"], ["tokens"], keepdims=0),  # [K]
        helper.make_node("Flatten", ["text_values"], ["flat"], axis=1),
        helper.make_node("ReduceSum", ["flat", "one"], ["sum"], keepdims=0),  # [K], padding adds nothing
        helper.make_node("Div", ["sum", "tokens"], ["mean"]),
        helper.make_node("Mul", ["mean", "forty"], ["angle"]),
        helper.make_node("Sin", ["angle"], ["wave"]),
        helper.make_node("Mul", ["wave", "eight"], ["of_prompt"]),  # [K]
        helper.make_node("Flatten", ["encoding"], ["cells"], axis=1),
        helper.make_node("ReduceMean", ["cells", "one"], ["of_picture"], keepdims=1),  # [B, 1]
        helper.make_node("Unsqueeze", ["of_prompt", "zero"], ["row"]),  # [1, K]
        helper.make_node("Add", ["of_picture", "row"], ["presence"]),
        helper.make_node("Flatten", ["text_keys"], ["unused"], axis=1),
    ]
    kept = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in numbers.items()]
    graph = helper.make_graph(nodes, "presence", *tensors, initializer=kept)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def add_readout(folder: Path) -> float:
    """Add the graph, a threshold that some prompts pass and others do not, and presence to the golden sample. Returns the
    threshold."""
    for name in (PRESENCE.file, PRESENCE.cpu_file):
        onnx.save(presence_graph(), folder / name)
        list_again(folder, name)
    golden = folder / "golden.safetensors"
    arrays = load_file(golden)
    presence = _run(folder, arrays)
    threshold = float(np.sort(presence, axis=None)[:2].mean())
    save_file({**arrays, "presence": presence}, golden)
    list_again(folder, golden.name)
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "presence": {"threshold": threshold}}))
    return threshold


def _run(folder: Path, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The golden sample's presence, by the graphs that a CPU runs."""
    known = dict(arrays)
    for spec in (TEXT_ENCODER, IMAGE_ENCODER, PRESENCE):
        name = spec.cpu_file if (folder / spec.cpu_file).is_file() else spec.file
        session = onnxruntime.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"])
        feeds = {tensor.name: known[tensor.name] for tensor in session.get_inputs()}
        known |= dict(zip([tensor.name for tensor in spec.outputs], session.run(None, feeds)))
    return known["presence"]
