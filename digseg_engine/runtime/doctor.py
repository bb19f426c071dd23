"""`digseg doctor`: what can run here, found out by running it, and how to install what is missing."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from digseg_engine.bundle import open_bundle
from digseg_engine.runtime.backends import Usable, kinds

PARTS = {
    "onnxruntime-gpu": ("onnxruntime-gpu", 'pip install "digseg-engine[gpu]" (NVIDIA GPU)'),
    "torch": ("torch", 'pip install "digseg-engine[train]" (training, evaluation)'),
    "onnx": ("onnx", 'pip install "digseg-engine[export]" (digseg-export)'),
    "tensorrt": ("tensorrt", 'pip install "digseg-engine[tensorrt]" (NVIDIA GPU); the backend itself is not built yet'),
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


def check_bundle(folder: Path) -> list[str]:
    """Hash-check a bundle and run its golden sample on every usable backend; one line each."""
    bundle = open_bundle(folder)
    precision = bundle.manifest["precision"]["name"]
    lines = [f"bundle {folder}: complete, all hashes match, precision {precision}, sha256 {bundle.digest[:16]}"]
    golden = load_file(str(bundle.file("golden.safetensors")))
    for kind in kinds().values():
        if not kind.probe().usable:
            continue
        backend = kind.create(bundle)
        keys, values = backend.encode_text(golden["token_ids"], golden["token_mask"])
        logits = backend.segment(golden["image"], keys, values, golden["token_mask"])
        error = float(np.abs(logits - golden["logits"]).max())
        a, b = logits > 0, golden["logits"] > 0
        iou = float((a & b).sum() / max(1, (a | b).sum()))
        lines.append(f"golden sample on {backend.detail}: max error {error:.2e}, mask IoU {iou:.5f}")
    return lines
