"""`digseg doctor`: what can run here, found out by running it, and how to install what is missing."""

from __future__ import annotations

import importlib.util
import json
import platform
import shutil
import subprocess
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from digseg_engine.errors import UsageError
from digseg_engine.runtime.backends import Usable, kinds
from digseg_engine.runtime.choice import Task, Verdict, measure
from digseg_engine.runtime.machine import device_key, library_versions
from digseg_engine.runtime.source import open_source

PARTS = {
    "onnxruntime-gpu": ("onnxruntime-gpu", 'pip install "digseg-engine[gpu]" (NVIDIA GPU)'),
    "torch": ("torch", 'pip install "digseg-engine[train]" (training, evaluation)'),
    "onnx": ("onnx", 'pip install "digseg-engine[export]" (digseg-export)'),
    "tensorrt": ("tensorrt", 'pip install "digseg-engine[tensorrt]" (NVIDIA GPU)'),
    "triton": ("triton", "pip install triton (fused kernels, Linux with an NVIDIA GPU)"),
}


def inspect_machine() -> list[Usable]:
    """Rows of the doctor's table: machine, GPU, backends (created for real), optional packages (found or not)."""
    rows = [Usable("machine", True, f"Python {platform.python_version()}, {platform.machine()}, {platform.system()}")]
    rows.append(_gpu())
    rows += [kind.probe() for kind in kinds().values()]
    return rows + [_package(name, *entry) for name, entry in PARTS.items()]


def _gpu() -> Usable:
    command = shutil.which("nvidia-smi")
    if command is None:
        return Usable("NVIDIA GPU", False, "", "nvidia-smi not found", "an NVIDIA driver, if this machine has a GPU")
    query = [command, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return Usable("NVIDIA GPU", False, "", f"nvidia-smi failed: {error}", "a working NVIDIA driver")
    return Usable("NVIDIA GPU", bool(answer), answer.replace("\n", "; "), "nvidia-smi lists none", "")


def _package(name: str, distribution: str, install: str) -> Usable:
    module = "onnxruntime" if distribution == "onnxruntime-gpu" else distribution
    try:
        found = version(distribution)
    except PackageNotFoundError:
        return Usable(name, False, "", "not installed", install)
    if importlib.util.find_spec(module) is None:
        return Usable(name, False, "", f"{distribution} {found} is installed but cannot be imported", install)
    return Usable(name, True, f"{distribution} {found}")


def choice_table(model: Path, checkpoint: Path | None, size: int | None, batch: int, prompts: int) -> Verdict:
    """Hash-check a bundle (or take a checkpoint), verify every backend on the golden sample, time those that are right.

    Measured afresh, and remembered: `Engine.load` uses this verdict from now on.
    """
    source = open_source(model, checkpoint)
    return measure(source, Task(size or source.sizes[0], batch, prompts))


def write_tables(path: Path, model: Path, verdicts: list[Verdict]) -> None:
    """The tables as JSON, with all that they depend on. Raises UsageError for a path that cannot be written."""
    tables = [{"task": asdict(one.task), "rows": [asdict(row) for row in one.rows]} for one in verdicts]
    body = {"model": model.name, "machine": device_key(), "versions": library_versions(), "tables": tables}
    try:
        path.write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}; choose another path with --json") from error


def describe_bundle(model: Path) -> str:
    """One line about a bundle or checkpoint that has passed its checks."""
    source = open_source(model)
    if source.bundle is None:
        return f"checkpoint {model}"
    precision = source.bundle.manifest["precision"]["name"]
    return f"bundle {model}: complete, all hashes match, precision {precision}, sha256 {source.bundle.digest[:16]}"
