"""Measured activation ranges: the largest magnitude of every float tensor of a graph on calibration data.

Ranges decide two things: which nodes stay in float32 because fp16 would overflow, and the scales of int8 and fp8.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from digseg_engine.runtime.backends.ort_backend import PROVIDER
from digseg_export.precision import FLOAT, SENTINEL

CHUNK = 256  # tensors measured per pass: bounds what has to be kept alive at once
FP16_MAX, FP16_SMALLEST = 65504.0, 6.1e-5
MARGIN = 4.0  # pictures outside the calibration set may reach further
Feeds = dict[str, Any]


def session(model: onnx.ModelProto | str, threads: int = 0, optimise: bool = True) -> onnxruntime.InferenceSession:
    """A CPU session for a model in memory (under 2 GB) or a file."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # checks may share the machine
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
    return inputs + [name for node in model.graph.node for name in node.output if name in floats]


def tensor_ranges(model: onnx.ModelProto, feeds: list[Feeds], chunk: int = CHUNK) -> dict[str, float]:
    """Largest |x| of every float tensor over all feeds; the "minus infinity" of attention masks does not count."""
    names = float_tensors(model)
    found: dict[str, float] = {}
    for start in range(0, len(names), chunk):
        part = names[start : start + chunk]
        run = session(_with_maxima(model, part))
        outputs = [f"{name}.absmax" for name in part]
        for feed in feeds:
            for name, value in zip(part, run.run(outputs, feed)):
                found[name] = max(found.get(name, 0.0), float(value))
    return found


def _with_maxima(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """A copy of the model with one scalar output per named tensor: its largest magnitude below the sentinel."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(SENTINEL, np.float32), "range.sentinel"))
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(0, np.float32), "range.zero"))
    for name in names:
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
