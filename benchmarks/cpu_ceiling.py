"""How near to what one core can do the network on the picture comes: `python -m benchmarks.cpu_ceiling`.

Of every CPU backend, one thread: operations a second in one large convolution and one large matrix product (the ceiling), and in
the convolutions, the matrix products and the whole of the image encoder of the shipped bundle, by the backend's own profile.
Operations are PyTorch's count (a multiply-add is two); what is neither convolution nor product counts none and takes time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from benchmarks.peers.flops import by_operator
from digseg_engine.bundle import open_bundle
from digseg_engine.contract import IMAGE_ENCODER
from digseg_engine.files import write_json
from digseg_engine.model.graph_modules import graph_modules
from digseg_engine.model.pretrained import load_checkpoint
from digseg_engine.named import SHIPPED_BUNDLE
from digseg_engine.runtime.backends.openvino_backend import VARIANTS, core, settings
from digseg_engine.runtime.machine import library_versions, processor

import onnxruntime  # isort: skip - after ours, which turns its telemetry off

OUTPUT = Path(__file__).resolve().parent / "results" / "cpu-ceiling.json"
CHANNELS, CELLS, ROWS = 256, 64, 1024  # of the large convolution (3 x 3) and of the large product
KINDS = {
    "convolution": {"Conv", "FusedConv", "Convolution"},
    "product": {
        "MatMul",
        "FusedMatMul",
        "Gemm",
        "FullyConnected",
        "Attention",
        "MultiHeadAttention",
        "ScaledDotProductAttention",
    },
}
Profile = dict[str, float]  # milliseconds by kind of operation


def one_node(kind: str) -> tuple[bytes, dict[str, np.ndarray], float]:
    """A graph of one large node, what to ask it, and its operations in G."""
    random = np.random.default_rng(0)
    if kind == "convolution":
        weight, shape = random.normal(size=(CHANNELS, CHANNELS, 3, 3)), (1, CHANNELS, CELLS, CELLS)
        node, flop = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4), 2 * CHANNELS**2 * 9 * CELLS**2
    else:
        weight, shape = random.normal(size=(ROWS, ROWS)), (ROWS, ROWS)
        node, flop = helper.make_node("MatMul", ["x", "w"], ["y"]), 2 * ROWS**3
    initial = helper.make_tensor("w", TensorProto.FLOAT, weight.shape, weight.astype(np.float32).tobytes(), raw=True)
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)] for name in ("x", "y")]
    model = helper.make_model(
        helper.make_graph([node], kind, *ends, [initial]), opset_imports=[helper.make_opsetid("", 18)]
    )
    onnx.checker.check_model(model)
    return model.SerializeToString(), {"x": random.normal(size=shape).astype(np.float32)}, flop / 1e9


def operations(size: int) -> dict[str, float]:
    """G operations of the image encoder on a picture [3, size, size] by kind."""
    encoder = graph_modules(load_checkpoint()).image_encoder
    found = dict.fromkeys(KINDS, 0.0)
    for operator, count in by_operator(lambda: encoder(torch.zeros(1, 3, size, size)))[0].items():
        found["convolution" if "convolution" in operator else "product"] += count / 1e9
    return found


class OnnxRuntime:
    """One thread, as the engine runs it; the graph whose weights are widened to float32."""

    file = "image_encoder.fp32.onnx"

    def run(self, model: Any, feeds: dict[str, Any]) -> Callable[[], Any]:
        session = onnxruntime.InferenceSession(model, self._options(), providers=["CPUExecutionProvider"])
        return lambda: session.run(None, feeds)

    def profile(self, model: Any, feeds: dict[str, Any], runs: int) -> Profile:
        options = self._options()
        with TemporaryDirectory() as room:
            options.enable_profiling, options.profile_file_prefix = True, f"{room}/profile"
            session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            for _ in range(runs):
                session.run(None, feeds)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        taken: dict[str, list[float]] = defaultdict(list)
        for event in events:
            if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
                taken[event["name"], event["args"]["op_name"]].append(event["dur"] / 1000)  # type: ignore[index]
        spent: Profile = defaultdict(float)
        for (_, operator), own in taken.items():  # type: ignore[misc]
            spent[operator] += statistics.median(own)
        return by_kind(spent)

    def _options(self) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        return options


class OpenVino:
    """One thread, in the precision of a variant; the stored graph."""

    file = IMAGE_ENCODER.file

    def __init__(self, name: str) -> None:
        self.properties = settings(VARIANTS[name], 1)

    def _request(self, model: Any, **more: str) -> Any:
        read = core().read_model(model, b"") if isinstance(model, bytes) else model
        return core().compile_model(read, "CPU", {**self.properties, **more}).create_infer_request()

    def run(self, model: Any, feeds: dict[str, Any]) -> Callable[[], Any]:
        request = self._request(model)
        return lambda: request.infer(feeds)

    def profile(self, model: Any, feeds: dict[str, Any], runs: int) -> Profile:
        request, taken = self._request(model, PERF_COUNT="YES"), defaultdict(list)
        for _ in range(runs):
            request.infer(feeds)
            for node in request.profiling_info:
                taken[node.node_name, node.node_type].append(node.real_time.total_seconds() * 1000)
        spent: Profile = defaultdict(float)
        for (_, operator), own in taken.items():
            spent[operator] += statistics.median(own)
        return by_kind(spent)


def by_kind(spent: dict[str, float]) -> Profile:
    """Milliseconds by operator -> by kind, and the rest."""
    found = {kind: sum(spent.get(name, 0.0) for name in names) for kind, names in KINDS.items()}
    return {**found, "rest": sum(spent.values()) - sum(found.values())}


def median_ms(call: Callable[[], Any], runs: int) -> float:
    """Median processor time of so many calls after two that warm up."""
    taken = []
    for _ in range(runs + 2):
        began = time.process_time()
        call()
        taken.append(1000 * (time.process_time() - began))
    return statistics.median(taken[2:])


def measure(backend: OnnxRuntime | OpenVino, counted: dict[str, float], size: int, runs: int) -> dict[str, Any]:
    """G operations a second of the large nodes, of the encoder and of its parts, and their shares of the ceiling."""
    ceiling = {}
    for kind in KINDS:
        model, feeds, flop = one_node(kind)
        ceiling[kind] = flop / median_ms(backend.run(model, feeds), runs) * 1000
    picture = {"image": np.random.default_rng(0).uniform(-1, 1, (1, 3, size, size)).astype(np.float32)}
    path = str(open_bundle(SHIPPED_BUNDLE).file(backend.file))
    whole = median_ms(backend.run(path, picture), runs)
    spent = backend.profile(path, picture, runs)
    parts = {
        kind: {"ms": round(spent[kind], 2), "gflop": round(flop, 3), "gflop_per_s": round(1000 * flop / spent[kind], 1),
               "share_of_ceiling": round(1000 * flop / spent[kind] / ceiling[kind], 3)}
        for kind, flop in counted.items()
    }  # fmt: skip
    rate = 1000 * sum(counted.values()) / whole
    return {
        "ceiling_gflop_per_s": {kind: round(found, 1) for kind, found in ceiling.items()}, "encoder_ms": round(whole, 2),
        "gflop_per_s": round(rate, 1), "share_of_convolution_ceiling": round(rate / ceiling["convolution"], 3),
        "parts": {**parts, "rest": {"ms": round(spent["rest"], 2)}},
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--note", default="")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    given = parser.parse_args(arguments)
    counted, able = operations(given.size), core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    backends = {"onnxruntime": OnnxRuntime(), "openvino": OpenVino("openvino")}
    if "BF16" in able:
        backends["openvino-bf16"] = OpenVino("openvino-bf16")
    rows = {}
    for name, backend in backends.items():
        rows[name] = measure(backend, counted, given.size, given.runs)
        print(json.dumps({"backend": name, **rows[name]}), flush=True)
    write_json(given.output, {
        "size": given.size, "threads": 1, "runs": given.runs, "note": given.note, "gflop": counted, "backends": rows,
        "versions": library_versions(), "load": os.getloadavg(), "processor": processor(), "date": str(date.today()),
    })  # fmt: skip


if __name__ == "__main__":
    main()
