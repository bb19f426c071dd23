"""`digseg doctor`: what can run here, found out by running it, and how to install what is missing."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from digseg_engine.extras import EXTRAS, install_line, lacking
from digseg_engine.files import write_json
from digseg_engine.runtime.backends import Usable, kinds
from digseg_engine.runtime.backends.tensorrt_rtx import can_build
from digseg_engine.runtime.choice import Task, Verdict, measure
from digseg_engine.runtime.machine import device_key, library_versions
from digseg_engine.runtime.source import open_source

COMMANDS = {"train": "digseg train, distill and eval", "export": "digseg-export"}  # extra -> what it is for


def inspect_machine() -> list[Usable]:
    """Rows of the doctor's table: machine, GPU, backends (created for real), what the other commands need (found or not)."""
    rows = [Usable("machine", True, f"Python {platform.python_version()}, {platform.machine()}, {platform.system()}")]
    rows.append(gpu := _gpu())
    rows += [kind.probe() for kind in kinds().values()]
    commands = [_command(extra, name) for extra, name in COMMANDS.items()]
    return [*rows, *(_torch_for(gpu) if gpu.usable else ()), *commands, can_build(), _triton()]


def _gpu() -> Usable:
    command = shutil.which("nvidia-smi")
    if command is None:
        return Usable("NVIDIA GPU", False, "", "nvidia-smi not found", "an NVIDIA driver, if this machine has a GPU")
    query = [command, "--query-gpu=name,driver_version,memory.total,memory.free", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return Usable("NVIDIA GPU", False, "", f"nvidia-smi failed: {error}", "a working NVIDIA driver")
    return Usable("NVIDIA GPU", bool(answer), answer.replace("\n", "; "), "nvidia-smi lists none", "")


def _torch_for(gpu: Usable) -> list[Usable]:
    """A row where there is a GPU and the PyTorch at hand is a build for the CPU, which leaves it idle without a word."""
    if importlib.util.find_spec("torch") is None or "+cpu" not in _version("torch"):
        return []
    return [Usable("PyTorch on the GPU", False, "", f"torch {_version('torch')} is a build for the CPU",
                   "PyTorch's build for CUDA: the command for this machine is on https://pytorch.org/get-started")]  # fmt: skip


def _command(extra: str, name: str) -> Usable:
    missing = lacking(extra)
    if missing:
        return Usable(name, False, "", f"not installed: {', '.join(missing)}", install_line(extra))
    return Usable(name, True, ", ".join(f"{module} {_version(module)}" for module in EXTRAS[extra]))


def _version(module: str) -> str:
    """Version of the installed package that brings a module."""
    try:
        return version({"skimage": "scikit-image"}.get(module, module))
    except PackageNotFoundError:  # onnxruntime by another name, a source tree on the path
        return "(version unknown)"


def _triton() -> Usable:
    name, help_line = "triton (fused kernels)", "pip install triton (Linux with an NVIDIA GPU)"
    if importlib.util.find_spec("triton") is None:
        return Usable(name, False, "", "not installed", help_line)
    return Usable(name, True, f"triton {_version('triton')}")


def choice_table(
    model: Path, checkpoint: Path | None, size: int | None, batch: int, prompts: int, engines: Path | None = None
) -> Verdict:  # fmt: skip
    """Hash-check a bundle (or take a checkpoint), verify every backend on the golden sample, time those that are right.

    Measured afresh, and remembered: `Engine.load` uses this verdict from now on.
    """
    source = replace(open_source(model, checkpoint), engines=engines)
    return measure(source, Task(size or source.usual_side, batch, prompts))


def write_tables(path: Path, model: Path, verdicts: list[Verdict]) -> None:
    """The tables as JSON, with all that they depend on. Raises OutputError for a path that cannot be written."""
    tables = [{"task": asdict(verdict.task), "rows": [asdict(row) for row in verdict.rows]} for verdict in verdicts]
    body = {"model": model.name, "machine": device_key(), "versions": library_versions(), "tables": tables}
    write_json(path, body)


def describe_bundle(model: Path) -> str:
    """One line about a bundle or checkpoint that has passed its checks."""
    source = open_source(model)
    if source.bundle is None:
        return f"checkpoint {model}"
    precision = source.bundle.manifest["precision"]["name"]
    return f"bundle {model}: complete, all hashes match, precision {precision}, sha256 {source.bundle.digest[:16]}"
