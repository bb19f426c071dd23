"""Measured activation ranges: the largest magnitude of every float tensor of a graph on calibration data.

Ranges decide two things: which nodes stay in float32 because fp16 would overflow, and the scales of int8 and fp8.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from digseg_export.precision import FLOAT, SENTINEL

PROVIDER = "CPUExecutionProvider"
FP16_MAX, FP16_SMALLEST = 65504.0, 6.1e-5
MARGIN = 4.0  # pictures outside the calibration set may reach further
Feeds = dict[str, Any]


def session(
    model: onnx.ModelProto | str, threads: int = 0, optimise: bool = True, weights_folder: Path | None = None
) -> onnxruntime.InferenceSession:
    """A CPU session for a model in memory (under 2 GB) or a file.

    weights_folder: folder of a large model's weights. It then runs node by node: optimised, all its constants would be widened to
    float32 at load; here each is mapped from the file and widened for its own node.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # checks may share the machine
    if weights_folder:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights_folder))
        options.enable_cpu_mem_arena = options.enable_mem_pattern = optimise = False
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = model if isinstance(model, str) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=[PROVIDER])


def float_tensors(model: onnx.ModelProto) -> list[str]:
    """Names of all float32 tensors that nodes make, in order; graph inputs of float32 first."""
    inferred = onnx.shape_inference.infer_shapes(model)
    values = [*inferred.graph.value_info, *inferred.graph.output]
    floats = {v.name for v in values if v.type.tensor_type.elem_type == FLOAT}
    inputs = [v.name for v in model.graph.input if v.type.tensor_type.elem_type == FLOAT]
    constants = {tensor.name for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if not constants.issuperset(node.input)]  # a weight is no activation
    return inputs + [name for node in nodes for name in node.output if name in floats]


def tensor_ranges(model: onnx.ModelProto, feeds: list[Feeds], weights_folder: Path | None = None) -> dict[str, float]:
    """Largest |x| of every float tensor over all feeds; the "minus infinity" of attention masks does not count."""
    names = float_tensors(model)
    run = session(_with_maxima(model, names), weights_folder=weights_folder)
    tops = [run.run([f"{name}.absmax" for name in names], feed) for feed in feeds]
    return {name: max(float(top[i]) for top in tops) for i, name in enumerate(names)}


def _with_maxima(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """A copy of the model with one scalar output per named tensor: its largest magnitude below the sentinel.

    ONNX Runtime visits the ends of a graph from the last node to the first, so they are added in reverse: each tensor is
    measured, and freed, as soon as it is made (60 tensors of 16 MB: peak 46 MB; the other way round, 946 MB).
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(SENTINEL, np.float32), "range.sentinel"))
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(0, np.float32), "range.zero"))
    for name in reversed(names):
        a, b, c, d = (f"{name}.{part}" for part in ("abs", "mask", "kept", "absmax"))
        graph.node.append(helper.make_node("Abs", [name], [a]))
        graph.node.append(helper.make_node("Less", [a, "range.sentinel"], [b]))
        graph.node.append(helper.make_node("Where", [b, a, "range.zero"], [c]))
        graph.node.append(helper.make_node("ReduceMax", [c], [d], keepdims=0))
        graph.output.append(helper.make_tensor_value_info(d, FLOAT, []))
    return copy


def range_islands(model: onnx.ModelProto, ranges: dict[str, float]) -> dict[str, str]:
    """Nodes that touch a tensor outside fp16's comfortable range on the calibration data: {node name: reason}."""
    found = {}
    for node in model.graph.node:
        if node.op_type == "Shape":
            continue  # reads no numbers
        touched = {name: ranges[name] for name in (*node.input, *node.output) if name in ranges}
        name, top = max(touched.items(), key=lambda item: item[1], default=("", 0.0))
        if top * MARGIN > FP16_MAX:
            found[node.name] = f"{name} reaches {top:.3g} on the calibration pictures; fp16 ends at 65504"
        elif small := [n for n in node.output if 0 < touched.get(n, 0) < FP16_SMALLEST]:
            found[node.name] = f"{small[0]} stays below {touched[small[0]]:.1g}, where fp16 has lost its digits"
    return found
