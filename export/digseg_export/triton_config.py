"""Configurations of Triton Inference Server (`config.pbtxt`) for the models that a bundle becomes, from its manifest and graphs.

The server's own schema is `model_config.proto`; a test reads every configuration back with it. Inputs and outputs of the
models in Python stand in `digseg_engine.serving.triton_server`, those of graphs in the graphs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from digseg_engine.bundle import Bundle
from digseg_engine.contract import GraphSpec
from digseg_engine.errors import UsageError
from digseg_engine.extras import require
from digseg_engine.runtime.profile import Profile
from digseg_engine.serving.limits import Limits
from digseg_engine.serving.triton_graphs import PLANS, STORED, WIDE, model_name
from digseg_engine.serving.triton_server import ENGINE, LIMITS, ROLES, Border, borders_of

BATCH = 8  # pictures that go through a model together
DELAY = 5000  # microseconds that a request waits for others
WARM_PICTURE, WARM_PROMPT = "picture", "prompt"  # files in a model's folder `warmup`
PYTHON, ORT, TENSORRT = BACKENDS = ("python", "onnxruntime", "tensorrt")
DEVICES = ("cpu", "gpu")
FILES = {
    ORT: "model.onnx",
    TENSORRT: "model.plan",
}  # of a version's folder; the first is a folder with the weights beside
TYPES = {
    1: "FP32",
    2: "UINT8",
    4: "UINT16",
    7: "INT64",
    9: "BOOL",
    10: "FP16",
    16: "BF16",
}  # of ONNX, as the server has them


@dataclass(frozen=True)
class Plan:
    """What is asked for. name: of the whole, and the start of all others; backend: what runs the graphs: `python`, the
    engine in the models in Python, or the server's own; instances: of every model."""

    name: str
    backend: str = PYTHON
    device: str = "cpu"
    instances: int = 1

    def check(self) -> None:
        """Raises UsageError for what does not exist or does not go together."""
        for value, known, option in (
            (self.backend, BACKENDS, "--triton-backend"),
            (self.device, DEVICES, "--triton-device"),
        ):
            if value not in known:
                raise UsageError(f"unknown {option} {value!r}; expected one of {', '.join(known)}")
        if self.backend == TENSORRT and self.device == "cpu":
            raise UsageError("--triton-backend tensorrt runs on NVIDIA GPUs; add --triton-device gpu")
        if self.instances < 1:
            raise UsageError(f"--triton-instances is {self.instances}; expected 1 or more")

    @property
    def models(self) -> dict[str, str]:
        """Names of the models in Python, by role."""
        return {role: self.name if role == "whole" else model_name(self.name, role) for role in ROLES}

    def form(self, bundle: Bundle) -> str:
        """Of the graphs that the server runs: on a CPU those made for it, where the bundle has them."""
        if self.backend == TENSORRT:
            return PLANS
        wide = any(spec.cpu_file in bundle.manifest["files"] for spec in bundle.graphs.values())
        return WIDE if self.device == "cpu" and wide else STORED

    def graph_file(self, bundle: Bundle, spec: GraphSpec) -> str:
        """The bundle's file that the server runs."""
        made = self.form(bundle) == WIDE and spec.cpu_file in bundle.manifest["files"]
        return spec.cpu_file if made else spec.file


class Word(str):
    """A name of the schema, written without quotes."""


def text(message: Mapping[str, Any], indent: str = "") -> str:
    """A message in protobuf's text form; lists are repeated fields."""
    lines = []
    for name, value in message.items():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, Mapping):
                lines.append(f"{indent}{name} {{\n{text(each, indent + '  ')}{indent}}}\n")
            else:
                lines.append(f"{indent}{name}: {_scalar(each)}\n")
    return "".join(lines)


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and not isinstance(value, Word):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'
    return str(value)


def python_config(bundle: Bundle, plan: Plan, role: str) -> dict[str, Any]:
    """The configuration of a model in Python."""
    inputs, outputs = borders_of(role, _has_presence(bundle), bundle.vocabulary is not None)
    limits, shared = Limits(), plan.models["whole"]
    parameters = {
        "role": role, "bundle": "1/bundle" if role == "whole" else f"../{shared}/1/bundle",
        "graphs": ENGINE if plan.backend == PYTHON else plan.form(bundle), "models": plan.name,
        "backend": "auto" if role == "whole" else "onnxruntime", "threads": "",
        **{name: str(getattr(limits, field)) for name, field in LIMITS.items()},
    }  # fmt: skip
    on_gpu = plan.device == "gpu" and plan.backend == PYTHON and role == "whole"
    alone = role != "decode" and plan.backend == PYTHON  # nothing says that the graphs' models are ready before it
    warm = [_warm_up(inputs, bundle.vocabulary is not None)] if alone else []
    return {
        "name": plan.models[role], "backend": "python", "max_batch_size": BATCH,
        "input": [{**_border(border), **_flags(border)} for border in inputs], "output": [_border(border) for border in outputs],
        **_together(limits, DELAY), **_instances(plan, on_gpu), "model_warmup": warm,
        "parameters": [{"key": key, "value": {"string_value": value}} for key, value in parameters.items()],
    }  # fmt: skip


def graph_config(bundle: Bundle, plan: Plan, graph: str) -> dict[str, Any]:
    """The configuration of a graph that the server runs by itself. graph: its name in the contract."""
    spec = bundle.graphs[graph]
    borders = read_borders(bundle.file(plan.graph_file(bundle, spec)))
    if strange := [name for ends in borders for name, (kind, _) in ends.items() if kind == "BF16"]:
        raise UsageError(f"{bundle.folder.name}: {strange[0]} of {spec.file} is bf16, which the server's Python backend cannot "
                         "pass on; export with --precision fp16, or leave out --triton-backend")  # fmt: skip
    most = most_pictures(bundle, plan, spec, borders)
    inputs, outputs = ([_graph_border(name, kind, dims[1:] if most else dims) for name, (kind, dims) in ends.items()]
                       for ends in borders)  # fmt: skip
    kind = {"backend": ORT} if plan.backend == ORT else {"platform": "tensorrt_plan", "backend": TENSORRT}
    return {
        "name": model_name(plan.name, graph), **kind, "max_batch_size": most, "default_model_filename": FILES[plan.backend],
        "input": inputs, "output": outputs, **(_together(Limits(), 0) if most else {}),
        **_instances(plan, plan.device == "gpu"), "model_warmup": [_warm_graph(bundle, spec, borders[0], most)],
    }  # fmt: skip


Ends = dict[str, tuple[str, list[int]]]  # type and sizes by name, -1 where a size is free


def read_borders(path: Path) -> tuple[Ends, Ends]:
    """Inputs and outputs of an ONNX file. Raises MissingPackageError without onnx."""
    require("digseg-export --triton-backend", "export")
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph

    def ends(values: Any) -> Ends:
        tensors = [(value.name, value.type.tensor_type) for value in values]
        return {name: (TYPES[tensor.elem_type], [d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim])
                for name, tensor in tensors}  # fmt: skip

    return ends(graph.input), ends(graph.output)


def most_pictures(bundle: Bundle, plan: Plan, spec: GraphSpec, borders: tuple[Ends, Ends]) -> int:
    """Pictures that the server may put together for a graph; 0 where pictures are not the first axis of everything, or are of a
    fixed number."""
    from digseg_engine.runtime.backends.tensorrt_native import bundle_profile

    free = all(dims and dims[0] == -1 for ends in borders for _, dims in ends.values())
    if not free or any(tensor.axes[0] != "B" for tensor in (*spec.inputs, *spec.outputs)):
        return 0
    profile = bundle_profile(bundle) if plan.backend == TENSORRT else Profile.from_json(bundle.manifest["shapes"])
    return BATCH if profile is None else min(BATCH, profile.ranges["B"].max)


def _has_presence(bundle: Bundle) -> bool:
    return any(tensor.name == "presence" for spec in bundle.graphs.values() for tensor in spec.outputs)


def _border(border: Border) -> dict[str, Any]:
    return _graph_border(border.name, border.kind, list(border.dims))


def _flags(border: Border) -> dict[str, bool]:
    """Of an input; outputs have none."""
    return {name: on for name, on in (("optional", border.optional), ("allow_ragged_batch", border.ragged)) if on}


def _graph_border(name: str, kind: str, dims: list[int]) -> dict[str, Any]:
    return {"name": name, "data_type": Word(f"TYPE_{kind}"), "dims": dims}


def _together(limits: Limits, delay: int) -> dict[str, Any]:
    """Requests wait for each other a little, and are refused beyond a queue."""
    return {"dynamic_batching": {"max_queue_delay_microseconds": delay,
                                 "default_queue_policy": {"max_queue_size": limits.queue}}}  # fmt: skip


def _instances(plan: Plan, on_gpu: bool) -> dict[str, Any]:
    return {"instance_group": [{"count": plan.instances, "kind": Word("KIND_GPU" if on_gpu else "KIND_CPU")}]}


def _warm_up(inputs: tuple[Border, ...], folded: bool) -> dict[str, Any]:
    """One picture before the model counts as ready."""
    files = {"IMAGE": WARM_PICTURE, **({} if folded else {"PROMPTS": WARM_PROMPT})}
    given = [{"key": border.name, "value": {"data_type": Word("TYPE_STRING"), "dims": [1], "input_data_file": files[border.name]}}
             for border in inputs if border.name in files]  # fmt: skip
    return {"name": "one picture", "batch_size": 1, "inputs": given}


def _warm_graph(bundle: Bundle, spec: GraphSpec, inputs: Ends, most: int) -> dict[str, Any]:
    """A request of the usual shapes, all zeros."""
    from digseg_export.plan_builder import shapes_of

    shapes = {name: list(usual) for name, (_, usual, _) in shapes_of(bundle, spec).items()}
    first = 1 if most else 0
    given = [{"key": name, "value": {"data_type": Word(f"TYPE_{kind}"), "dims": shapes[name][first:], "zero_data": True}}
             for name, (kind, _) in inputs.items()]  # fmt: skip
    return {"name": "usual shapes", "batch_size": 1, "inputs": given}
