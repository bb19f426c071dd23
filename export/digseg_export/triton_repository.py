"""`digseg-export --triton-repository DIR`: the folder that Triton Inference Server serves a bundle from.

Three models in Python with our engine and tokenizer: NAME (pictures and prompts to masks), NAME_encode and NAME_decode. With
`--triton-backend onnxruntime` or `tensorrt` the graphs are models too, which the server runs by itself, and the three ask
those.
"""

from __future__ import annotations

import io
import re
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from digseg_engine import __version__
from digseg_engine.bundle import MANIFEST, SIGNATURE, Bundle, open_bundle
from digseg_engine.errors import UsageError
from digseg_engine.files import write_bytes, write_json, write_text
from digseg_engine.folders import check_target, files_of, listing, writing
from digseg_engine.named import find_model
from digseg_engine.serving.triton_graphs import model_name
from digseg_export.progress import Progress
from digseg_export.triton_config import (
    FILES,
    ORT,
    PYTHON,
    TENSORRT,
    WARM_PICTURE,
    WARM_PROMPT,
    Plan,
    graph_config,
    python_config,
    text,
)

FORMAT, LISTED = "digseg.triton/1", "digseg-repository.json"
CONFIG, PLANS = "config.pbtxt", "build-plans.sh"
MODEL = '''"""A model of Triton Inference Server, written by `digseg-export --triton-repository`; config.pbtxt says which.

Everything it does is in `digseg_engine.serving.triton_model`, which the server's Python must be able to import.
"""

import triton_python_backend_utils as pb_utils

from digseg_engine.serving.triton_model import python_model

TritonPythonModel = python_model(pb_utils)
'''


@dataclass(frozen=True)
class Repository:
    """What was written: the models by name, in order, and the bytes of all files."""

    folder: Path
    bundle: str
    models: tuple[str, ...]
    bytes: int

    def to_json(self) -> dict[str, Any]:
        return {"folder": str(self.folder), "bundle": self.bundle, "models": list(self.models), "bytes": self.bytes}


MARK = listing("a repository of `--triton-repository`", LISTED, FORMAT, ignored=lambda name: "/__pycache__/" in name)


class RepositoryBuilder:
    """Everything that can be wrong before there is a bundle, looked at when it is made.

    Raises UsageError for an unusable output, an unknown backend or device, and a bundle whose name no model can have.
    """

    def __init__(
        self, bundle: Path, output: Path, backend: str = PYTHON, device: str = "cpu", instances: int = 1
    ) -> None:
        self.bundle, self.output = find_model(bundle), output
        self.plan = Plan(self.bundle.resolve().name, backend, device, instances)
        self.plan.check()
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", self.plan.name):
            raise UsageError(f"the server's model would be called {self.plan.name!r}, like the bundle's folder; expected "
                             "letters, digits, and . _ - inside; rename the folder")  # fmt: skip
        check_target(output, MARK)

    def preview(self) -> dict[str, Any]:
        """For --dry-run: what would be written."""
        graphs = "by the engine" if self.plan.backend == PYTHON else f"models of their own, by {self.plan.backend}"
        return {"triton repository": str(self.output), "triton models": list(self.plan.models.values()),
                "triton graphs": f"{graphs}, on {self.plan.device}"}  # fmt: skip

    def run(self, progress: Progress) -> Repository:
        """Write the folder. Raises BundleError for a bundle that cannot be read, UsageError for one that the backend cannot
        run."""
        progress("repository of Triton Inference Server")
        return write_repository(open_bundle(self.bundle), self.plan, self.output)


def write_repository(bundle: Bundle, plan: Plan, output: Path) -> Repository:
    """The repository of a verified bundle at `output`, whole or not at all."""
    with writing(output, MARK) as folder:
        for role, name in plan.models.items():
            _write_model(folder / name, python_config(bundle, plan, role))
            write_text(folder / name / "1" / "model.py", MODEL)
            if role != "decode" and plan.backend == PYTHON:
                _write_warm_up(folder / name / "warmup", bundle, role)
        _copy(bundle, folder / plan.name / "1" / "bundle", [*bundle.manifest["files"], MANIFEST, SIGNATURE])
        graphs = [] if plan.backend == PYTHON else list(bundle.graphs)
        for graph in graphs:
            _write_graph(folder / model_name(plan.name, graph), bundle, plan, graph)
        if plan.backend == TENSORRT:
            write_text(folder / PLANS, plans_script(bundle, plan))
        models = (*plan.models.values(), *(model_name(plan.name, graph) for graph in graphs))
        sizes = {path: (folder / path).stat().st_size for path in sorted(files_of(folder))}
        about = {"format": FORMAT, "version": __version__, "bundle": {"name": plan.name, "sha256": bundle.digest},
                 "backend": plan.backend, "device": plan.device, "models": list(models), "files": sizes}  # fmt: skip
        write_json(folder / LISTED, about, sort_keys=True)
    return Repository(output, plan.name, models, sum(sizes.values()))


def _write_model(folder: Path, config: dict[str, Any]) -> None:
    (folder / "1").mkdir(parents=True)
    write_text(folder / CONFIG, text(config))


def _write_graph(folder: Path, bundle: Bundle, plan: Plan, graph: str) -> None:
    """A graph as a model: its weights beside it, in a folder that is called like a file, as the server wants it."""
    _write_model(folder, graph_config(bundle, plan, graph))
    if plan.backend == ORT:
        spec = bundle.graphs[graph]
        place = folder / "1" / FILES[ORT]
        _copy(bundle, place, [spec.data_file])
        write_bytes(place / "model.onnx", bundle.graph(plan.graph_file(bundle, spec)))


def _write_warm_up(folder: Path, bundle: Bundle, role: str) -> None:
    """Texts as the server has them in memory: their length and their bytes."""
    folder.mkdir()
    size, picture = int(bundle.manifest["model"]["image_size"]), io.BytesIO()
    Image.new("RGB", (size, size), (128, 128, 128)).save(picture, "PNG")
    bodies = {WARM_PICTURE: picture.getvalue()}
    if role == "whole" and bundle.vocabulary is None:
        bodies[WARM_PROMPT] = b"a thing"
    for name, body in bodies.items():
        write_bytes(folder / name, struct.pack("<I", len(body)) + body)


def _copy(bundle: Bundle, folder: Path, names: list[str]) -> None:
    """Files of a bundle, as they were hashed."""
    folder.mkdir(parents=True)
    for name in names:
        if name in bundle.manifest["files"]:
            shutil.copyfile(bundle.file(name), folder / name)
            bundle.unchanged(name)
        elif (bundle.folder / name).is_file():  # the manifest and the signature, which no manifest lists
            shutil.copyfile(bundle.folder / name, folder / name)


def plans_script(bundle: Bundle, plan: Plan) -> str:
    """A script that builds the plans on the machine that serves them, with NVIDIA's `trtexec`."""
    from digseg_export.plan_builder import shapes_of

    lines = []
    for graph, spec in bundle.graphs.items():
        ends = zip(("min", "opt", "max"), zip(*shapes_of(bundle, spec).values()), strict=True)
        names = list(shapes_of(bundle, spec))
        shapes = " ".join(f"--{end}Shapes=" + ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in zip(names, found))
                          for end, found in ends)  # fmt: skip
        lines.append(f'trtexec --onnx="$bundle/{spec.file}" --stronglyTyped {shapes} \\\n'
                     f'  --saveEngine="$here/{model_name(plan.name, graph)}/1/{FILES[TENSORRT]}"')  # fmt: skip
    return f"""#!/usr/bin/env bash
# Builds the TensorRT plans of this repository, on the machine and with the TensorRT release that will serve them:
#     bash {PLANS}
# Written from the documentation of trtexec; not run by us yet.
set -euo pipefail
here="$(cd "$(dirname "${{BASH_SOURCE[0]}}")" && pwd)"
bundle="$here/{plan.name}/1/bundle"
{chr(10).join(lines)}
"""
