"""What the verdict of a backend choice depends on: the device, its driver, and the versions of the libraries. Cheap:
files and names of folders are read, nothing is started."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

LIBRARIES = ("onnxruntime", "onnxruntime-gpu", "torch", "diffusers", "triton", "tensorrt", "numpy", "digseg-engine")
WATCHED = ("DIGSEG_DEVICE", "DIGSEG_TRITON", "DIGSEG_CUDA_GRAPHS", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")


def library_versions() -> dict[str, str]:
    """Installed versions of everything a backend may use; what is absent is left out.

    Read from the names of the installed metadata folders (`torch-2.13.0.dist-info`): to open them takes ten times longer.
    """
    wanted = {name.replace("-", "_"): name for name in LIBRARIES}
    found: dict[str, str] = {}
    for folder in sys.path:
        try:
            entries = os.listdir(folder or ".")
        except OSError:
            continue
        for entry in entries:
            stem, suffix = os.path.splitext(entry)
            name, _, version = stem.partition("-")
            if suffix in (".dist-info", ".egg-info") and version and name.lower() in wanted:
                found.setdefault(wanted[name.lower()], version.split("-")[0])
    return {name: found[name] for name in LIBRARIES if name in found}


def device_key() -> dict[str, str]:
    """Processor, cores, GPUs and driver, and the environment variables that change which of them is used."""
    about = {"machine": platform.machine(), "processor": processor(), "cores": str(cores()), "gpus": _gpus(),
             "driver": _first_line(Path("/proc/driver/nvidia/version"))}  # fmt: skip
    return {**about, **{name: os.environ[name] for name in WATCHED if name in os.environ}}


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores_if_bound() -> int:
    """`cores` where the machine has more (taskset, a container's cpuset), else 0.

    ONNX Runtime counts the machine's and binds its threads to them: outside what taskset allows, or, where a container forbids
    that, more threads than cores, which wait for each other.
    """
    return cores() if cores() < (os.cpu_count() or 1) else 0


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
