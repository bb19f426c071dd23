"""int8 and fp8 (E4M3) as Q/DQ nodes: what TensorRT 10.3 to 11 and ONNX Runtime read as explicit quantisation.

The nodes and int8 weights are placed by `onnxruntime.quantization`'s `QDQQuantizer`, with our measured ranges: its own
calibrator keeps every activation of every picture in memory. fp8 reuses the int8 placement, with scales to E4M3's 448
(the tool's own fp8 scales gave NaN on these graphs). Symmetric, weights per output channel, biases in float32: what
TensorRT asks for. Layers that lose too much are left out by measurement.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from digseg_engine.precisions import PLAIN, spec_of
from digseg_export.ranges import Feeds, session

INT8_MAX, FP8_MAX = 127.0, 448.0
LAYERS = ("Conv", "MatMul", "Gemm")
STORED_HALF = 1024  # constants of this many bytes and more that stay float are stored in fp16 behind a Cast
LIMIT = 0.08  # relative error of a graph's outputs on the calibration data
TINY = "smallest.size"  # the name of a constant in the graph that measures
QUANTISERS = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class Quantised:
    """A quantised graph and its report {name, quantised, left_out: {node: reason}, error, limit}."""

    model: onnx.ModelProto
    report: dict[str, Any]


def layers(model: onnx.ModelProto) -> list[NodeProto]:
    """The nodes that can be quantised: convolutions, and products with a constant matrix."""
    rank = {t.name: len(t.dims) for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}
    found = [node for node in model.graph.node if node.op_type in LAYERS and node.input[1] in rank]
    return [node for node in found if node.op_type == "Conv" or rank[node.input[1]] == 2]


def without_bias(model: onnx.ModelProto) -> dict[str, str]:
    """Convolutions that have none, and why they stay as they are: of such ones OpenVINO's CPU plug-in (2026.4) applied the scales
    a second time, so that next to nothing came out, and it takes a bias of zeros for none."""
    found = [node.name for node in model.graph.node if node.op_type == "Conv" and len(node.input) < 3]
    return dict.fromkeys(found, "has no bias; OpenVINO loses the scale of such a convolution in int8")


def quantise(
    model: onnx.ModelProto, precision: str, ranges: dict[str, float], feeds: list[Feeds], keep: dict[str, str],
    limit: float | None = None,
) -> Quantised:  # fmt: skip
    """Quantise a float32 graph, leaving out the fewest sensitive layers that keep its outputs within `limit`.

    ranges: largest magnitude of every activation; feeds: calibration inputs; keep: {node: reason} left out in any case.
    The limit is not a promise: verification judges the result.
    """
    limit = LIMIT if limit is None else limit
    keep = {**keep, **without_bias(model)}
    possible = [node.name for node in layers(model) if node.name not in keep]
    wanted = [session(model).run(None, feed) for feed in feeds]
    full = insert(model, precision, ranges, possible)
    errors = layer_errors(model, full, possible, feeds)
    order = sorted(possible, key=lambda name: -errors[name])
    count, error, graph = _fewest_left_out(
        len(order), lambda n: insert(model, precision, ranges, sorted(set(possible) - set(order[:n]))),
        lambda trial: relative_error(wanted, trial, feeds), limit,
    )  # fmt: skip
    reason = "loses {:.1%} of its own output in {}; left out to hold the graph's limit".format
    left_out = {**keep, **{name: reason(errors[name], precision) for name in order[:count]}}
    store_half(graph)
    report = {
        "name": precision,
        "quantised": len(possible) - count,
        "left_out": left_out,
        "error": error,
        "limit": limit,
    }
    return Quantised(graph, report)


def left_alone(model: onnx.ModelProto, reason: str) -> Quantised:
    """A graph of a quantised bundle that computes in float32, with large constants stored as those of its neighbours are."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    store_half(copy)
    return Quantised(copy, {"name": PLAIN.name, "quantised": 0, "reason": reason})


def _fewest_left_out(
    total: int, build: Callable[[int], onnx.ModelProto], error_of: Callable[[onnx.ModelProto], float], limit: float
) -> tuple[int, float, onnx.ModelProto]:
    """(count, error, graph) for about the smallest count within the limit: doubling, then halving the last step."""
    low, count = -1, 0
    graph = build(0)
    error = error_of(graph)
    while not error <= limit and count < total:  # `not <=` takes NaN as over the limit
        low, count = count, min(max(2, 2 * count), total)
        graph = build(count)
        error = error_of(graph)
    while count - low > max(1, total // 20):
        middle = (low + count) // 2
        trial = build(middle)
        trial_error = error_of(trial)
        if trial_error <= limit:
            count, error, graph = middle, trial_error, trial
        else:
            low = middle
    return count, error, graph


def insert(model: onnx.ModelProto, precision: str, ranges: dict[str, float], names: list[str]) -> onnx.ModelProto:
    """The graph with Q/DQ around the named layers."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if not names:
        return copy
    quantised = _place(copy, ranges, names)
    return quantised if spec_of(precision).onnx == "INT8" else _to_fp8(model, quantised)


def _place(model: onnx.ModelProto, ranges: dict[str, float], names: list[str]) -> onnx.ModelProto:
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    ends = {name: (np.float32(-top), np.float32(top)) for name, top in ranges.items()}
    data = TensorsData(CalibrationMethod.MinMax, {n: TensorData(lowest=a, highest=b) for n, (a, b) in ends.items()})
    options = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False,
               "DedicatedQDQPair": False, "OpTypesToExcludeOutputQuantization": list(LAYERS)}  # fmt: skip
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        tool = QDQQuantizer(
            model, True, False, QuantType.QInt8, QuantType.QInt8, data, names, [], list(LAYERS), options
        )
        tool.quantize_model()
    finally:
        logging.root.setLevel(level)
    quantised: onnx.ModelProto = tool.model.model
    quantised.producer_name, quantised.producer_version = model.producer_name, model.producer_version
    _only_layers(quantised, set(names))
    return quantised


def _only_layers(model: onnx.ModelProto, names: set[str]) -> None:
    """Give every other consumer (residual sums, shapes) its float tensor back, and sort the nodes. In place."""
    end = "_DequantizeLinear_Output"
    for node in model.graph.node:
        if node.name not in names and node.op_type not in QUANTISERS:
            node.input[:] = [name.removesuffix(end) for name in node.input]
    computed = {name for node in model.graph.node for name in node.output}
    waiting, ready, ordered = list(model.graph.node), set[str](), []
    while waiting:  # stable: a node is taken as early as its inputs allow
        later = []
        for node in waiting:
            if all(name in ready or name not in computed for name in node.input):
                ordered.append(node)
                ready.update(node.output)
            else:
                later.append(node)
        waiting = later
    del model.graph.node[:]
    model.graph.node.extend(ordered)


def _to_fp8(original: onnx.ModelProto, quantised: onnx.ModelProto) -> onnx.ModelProto:
    """Turn int8 Q/DQ into E4M3: scales from 127 to 448, zero points and weights in the new type."""
    weights = {t.name: t for t in original.graph.initializer}
    constants = {t.name: t for t in quantised.graph.initializer}
    scales: set[str] = set()
    for node in quantised.graph.node:
        if node.op_type not in QUANTISERS:
            continue
        source, scale, zero = node.input
        if scale not in scales:
            scales.add(scale)
            values = numpy_helper.to_array(constants[scale]) * np.float32(INT8_MAX / FP8_MAX)
            constants[scale].CopyFrom(numpy_helper.from_array(values, scale))
        if constants[zero].data_type == TensorProto.INT8:
            constants[zero].CopyFrom(_fp8(np.zeros(list(constants[zero].dims), np.float32), zero))
        if source in constants and constants[source].data_type == TensorProto.INT8:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            float_values = numpy_helper.to_array(weights[source.removesuffix("_quantized")])
            shape = [-1 if i == axis else 1 for i in range(float_values.ndim)]
            steps = numpy_helper.to_array(constants[scale]).reshape(shape)
            constants[source].CopyFrom(_fp8(np.clip(float_values / steps, -FP8_MAX, FP8_MAX), source))
    return quantised


def _fp8(values: NDArray[Any], name: str) -> TensorProto:
    raw = values.astype(ml_dtypes.float8_e4m3fn).tobytes()
    return helper.make_tensor(name, TensorProto.FLOAT8E4M3FN, values.shape, raw, raw=True)


def layer_errors(
    model: onnx.ModelProto, full: onnx.ModelProto, names: list[str], feeds: list[Feeds]
) -> dict[str, float]:
    """What each layer alone loses: relative error of its quantised copy on float inputs, worst over the feeds."""
    graph = onnx.ModelProto()
    graph.CopyFrom(model)
    have = {t.name for t in model.graph.initializer}
    graph.graph.initializer.extend(t for t in full.graph.initializer if t.name not in have)
    graph.graph.initializer.append(numpy_helper.from_array(np.float32(1e-30), TINY))
    makers = {name: node for node in full.graph.node if node.op_type in QUANTISERS for name in node.output}
    done: set[str] = set()
    chosen = set(names)
    for node in [n for n in full.graph.node if n.name in chosen]:
        for name in node.input:
            _copy_chain(graph, makers, done, name)
        copy = NodeProto()
        copy.CopyFrom(node)
        plain = next(n for n in model.graph.node if n.name == node.name).output[0]
        copy.name, copy.output[0] = f"{node.name}.quantised", f"{plain}.quantised"
        gap, top, bottom, ratio = (f"{node.name}.{part}" for part in ("gap", "lost", "size", "error"))
        graph.graph.node.extend([
            copy,
            helper.make_node("Sub", [copy.output[0], plain], [gap]),
            helper.make_node("ReduceL2", [gap], [top], keepdims=0),
            helper.make_node("ReduceL2", [plain], [bottom], keepdims=0),
            helper.make_node("Max", [bottom, TINY], [f"{bottom}.kept"]),  # a layer that answers zeros loses nothing of it
            helper.make_node("Div", [top, f"{bottom}.kept"], [ratio]),
        ])  # fmt: skip
        graph.graph.output.append(helper.make_tensor_value_info(ratio, TensorProto.FLOAT, []))
    run = session(graph, optimise=False)  # optimised, Q/DQ of the copies would be fused into the float layers' inputs
    losses = [run.run([f"{name}.error" for name in names], feed) for feed in feeds]
    return {name: worst([float(loss[i]) for loss in losses]) for i, name in enumerate(names)}


def worst(losses: list[float]) -> float:
    """The largest loss over the feeds. A layer whose quantised output is not a number loses all there is; `max` alone would
    keep or drop a NaN by its place in the list."""
    return max(float("inf") if np.isnan(loss) else loss for loss in losses)


def _copy_chain(graph: onnx.ModelProto, makers: dict[str, NodeProto], done: set[str], name: str) -> None:
    if name in done or name not in makers:
        return
    done.add(name)
    for source in makers[name].input:
        _copy_chain(graph, makers, done, source)
    graph.graph.node.append(makers[name])


def relative_error(wanted: list[Any], graph: onnx.ModelProto, feeds: list[Feeds]) -> float:
    """Relative L2 error of all outputs over all feeds."""
    run = session(graph)
    lost = size = 0.0
    for want, feed in zip(wanted, feeds):
        for a, b in zip(want, run.run(None, feed)):
            lost += float(((a.astype(np.float64) - b) ** 2).sum())
            size += float((a.astype(np.float64) ** 2).sum())
    return float(np.sqrt(lost / max(size, 1e-30)))


def store_half(model: onnx.ModelProto) -> None:
    """Keep large float constants (embeddings, layers left out) in fp16 on disk, cast to float32 when loaded. In place."""
    casts = []
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor) if tensor.data_type == TensorProto.FLOAT else np.zeros(0)
        if values.nbytes < STORED_HALF or tensor.name.endswith("_scale") or np.abs(values).max() > 65504:
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.fp16"))
        casts.append(helper.make_node("Cast", [f"{name}.fp16"], [name], name=f"widen/{name}", to=TensorProto.FLOAT))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*casts, *nodes])
