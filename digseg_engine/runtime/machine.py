"""What the verdict of a backend choice depends on: the device, its driver, and the versions of the libraries. Cheap:
files and package metadata are read, nothing is started."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIBRARIES = ("onnxruntime", "onnxruntime-gpu", "torch", "diffusers", "triton", "tensorrt", "numpy", "digseg-engine")
WATCHED = ("DIGSEG_DEVICE", "DIGSEG_TRITON", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")


def library_versions() -> dict[str, str]:
    """Installed versions of everything a backend may use; what is absent is left out."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def device_key() -> dict[str, str]:
    """Processor, cores, GPUs and driver, and the environment variables that change which of them is used."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    about = {"machine": platform.machine(), "processor": processor(), "cores": str(cores), "gpus": _gpus(),
             "driver": _first_line(Path("/proc/driver/nvidia/version"))}  # fmt: skip
    return {**about, **{name: os.environ[name] for name in WATCHED if name in os.environ}}


def processor() -> str:
    """Name of this machine's processor."""
    for line in _lines(Path("/proc/cpuinfo")):
        if line.startswith(("model name", "Hardware")):
            return line.split(":", 1)[-1].strip()
    return platform.processor()


def _gpus() -> str:
    found = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        found += [line.split(":", 1)[-1].strip() for line in _lines(path) if line.startswith("Model")]
    return ", ".join(found)


def _first_line(path: Path) -> str:
    return next(iter(_lines(path)), "")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
