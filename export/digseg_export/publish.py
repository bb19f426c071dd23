"""The export itself: checkpoint -> graphs -> precision -> checks -> bundle, all or nothing."""

from __future__ import annotations

import datetime
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from safetensors.numpy import save_file

import digseg_engine
from digseg_engine.bundle import check_target, finish, writing
from digseg_engine.contract import BUNDLE_FORMAT, SEGMENTER, TEXT_ENCODER, GraphSpec, contract_json
from digseg_engine.model.pretrained import BUNDLED, Checkpoint, load_checkpoint
from digseg_engine.runtime.backends.ort_backend import wide_name
from digseg_export.graph_check import check_graph
from digseg_export.precision import Policy, check_precision, last_layer, to_precision, widen
from digseg_export.to_onnx import example_inputs, export_segmenter, export_text_encoder, stages
from digseg_export.verify import LIMITS, Check, Limits, Sample, report, samples, verify

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Exported:
    """What an export did: where, what was checked, sizes in bytes and seconds per step."""

    folder: Path
    precision: str
    checks: list[Check]
    limits: Limits
    sizes: dict[str, int]
    seconds: dict[str, float]


def default_output(model: Path | None, precision: str) -> Path:
    """`digseg-tiny-fp16` in the current directory for the bundled model, `<model>-<precision>` otherwise."""
    return Path(f"{(model or BUNDLED).resolve().name}-{precision}")


def export_bundle(
    model: Path | None = None, precision: str = "fp16", output: Path | None = None,
    limits: Limits | None = None, progress: Progress = lambda step: None,
) -> Exported:  # fmt: skip
    """Export a checkpoint directory (None: the bundled one) and return what was done.

    Raises UsageError for a precision or output that cannot be used, CheckpointError for a broken checkpoint and
    VerificationError when the graphs do not reproduce PyTorch; in every case nothing is left behind.
    """
    target = output or default_output(model, check_precision(precision))
    limits = limits or LIMITS[check_precision(precision)]
    check_target(target)
    clock = _Clock(progress)
    clock.start("load checkpoint")
    checkpoint = load_checkpoint(model)
    with writing(target) as room:
        precision_report = _write_graphs(room, checkpoint, precision, clock)
        clock.start("check graphs")
        names = [path.name for path in sorted(room.glob("*.onnx"))]
        graphs = {name: check_graph(room / name) for name in names}
        clock.start("answer test scenes in PyTorch")
        data = samples(checkpoint)
        clock.start("verify")
        checks = verify(room, data, precision, limits, clock.detail)
        clock.start("write bundle")
        (room / "tokenizer.json").write_bytes(((model or BUNDLED) / "tokenizer" / "tokenizer.json").read_bytes())
        _write_golden(room, data[0])
        manifest = _manifest(checkpoint, precision_report, graphs, report(checks, limits))
        finish(room, manifest)
        sizes = {path.name: path.stat().st_size for path in sorted(room.iterdir())}
    clock.stop()
    return Exported(target, precision, checks, limits, sizes, clock.seconds)


def _write_graphs(room: Path, checkpoint: Checkpoint, precision: str, clock: _Clock) -> dict[str, Any]:
    clock.start("fold constants")
    parts = stages(checkpoint)
    inputs = example_inputs(checkpoint, 2 * checkpoint.stride)
    clock.start("trace text encoder")
    text = export_text_encoder(parts, inputs)
    clock.start("trace segmenter")
    segmenter = export_segmenter(parts, inputs, checkpoint.stride)
    clock.start(f"convert to {precision}")
    islands = {}
    for spec, model in ((TEXT_ENCODER, text), (SEGMENTER, segmenter)):
        islands[spec.file] = _write_graph(room, spec, model, precision)
    return {"name": precision, "graphs": islands}


def _write_graph(room: Path, spec: GraphSpec, model: onnx.ModelProto, precision: str) -> dict[str, Any]:
    """Save a graph in its precision with one external weights file, and its float32 twin over the same file."""
    _strip(model)
    io = {tensor.name: tensor.dtype for tensor in (*spec.inputs, *spec.outputs)}
    policy = Policy(precision, nodes=last_layer(model) if spec is SEGMENTER else {})
    converted, islands = to_precision(model, policy, io)
    data = spec.file.replace(".onnx", ".data")
    options: dict[str, Any] = {"all_tensors_to_one_file": True, "location": data, "size_threshold": 1024}
    onnx.save_model(converted, str(room / spec.file), save_as_external_data=True, **options)
    if precision != "fp32":
        stored = onnx.load(str(room / spec.file), load_external_data=False)
        onnx.save_model(widen(model, stored, precision), str(room / wide_name(spec)))
    return islands


def _strip(model: onnx.ModelProto) -> None:
    """Drop what would differ between two exports or grow the file: stack traces, notes, inferred shapes."""
    model.producer_name, model.producer_version, model.doc_string = "digseg-export", digseg_engine.__version__, ""
    del model.metadata_props[:], model.graph.metadata_props[:], model.graph.value_info[:]
    model.graph.name, model.graph.doc_string = "digseg", ""
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]


def _write_golden(room: Path, sample: Sample) -> None:
    """One picture, three prompts and PyTorch's logits, so that any runtime can check itself."""
    arrays = {
        "image": sample.image[:1].astype(np.float32),
        "token_ids": sample.token_ids[:3],
        "token_mask": sample.token_mask[:3],
        "logits": np.ascontiguousarray(sample.logits[:1, :3]).astype(np.float32),
    }
    save_file(arrays, str(room / "golden.safetensors"), metadata={"prompts": json.dumps(sample.prompts[:3])})


def _manifest(
    checkpoint: Checkpoint, precision: dict[str, Any], graphs: dict[str, Any], verified: dict[str, Any]
) -> dict[str, Any]:
    student = checkpoint.config.student
    tools = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime", "numpy")
    return {
        "format": BUNDLE_FORMAT,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "contract": contract_json(),
        "model": {
            "name": checkpoint.config.name,
            "image_size": checkpoint.config.image_size,
            "stride": checkpoint.stride,
            "scales": len(checkpoint.student.injections),
            "student": asdict(student),
        },
        "precision": precision,
        "shapes": {"B": "dynamic", "K": "dynamic", "L": "dynamic", "H": "dynamic", "W": "dynamic"},
        "graphs": graphs,
        "verification": verified,
        "tools": {
            "digseg-engine": digseg_engine.__version__,
            "python": platform.python_version(),
            **{t: version(t) for t in tools},
        },
        "licence": {"code": "Apache-2.0", "weights": _licence(checkpoint)},
    }


def _licence(checkpoint: Checkpoint) -> str:
    known = {"tiny": "Apache-2.0 (trained on generated scenes and on photographs shipped with scikit-image)"}
    return known.get(checkpoint.config.name, "that of the weights it was trained from")


class _Clock:
    def __init__(self, progress: Progress) -> None:
        self.seconds: dict[str, float] = {}
        self._progress, self._name, self._began = progress, "", time.perf_counter()

    def start(self, name: str) -> None:
        self.stop()
        self._name, self._began = name, time.perf_counter()
        self._progress(name)

    def detail(self, text: str) -> None:
        self._progress(f"{self._name}: {text}")

    def stop(self) -> None:
        if self._name:
            self.seconds[self._name] = time.perf_counter() - self._began
