"""What the verdict of a backend choice depends on: the device, its driver, and the versions of the libraries; and how
many processor cores this process may use. Cheap: files and names of folders are read, nothing is started."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

LIBRARIES = ("onnxruntime", "onnxruntime-gpu", "torch", "diffusers", "triton", "tensorrt", "tensorrt-rtx-cu13",
             "onnxruntime-ep-nv-tensorrt-rtx-cu13", "openvino", "numpy",
             "digseg-engine")  # fmt: skip
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
    """Cores that this process may use: those it is bound to (taskset, a container's cpuset), at most its CPU quota."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(bound, cpu_quota() or bound)


def cores_if_bound() -> int:
    """`cores` where the machine has more, else 0.

    ONNX Runtime counts the machine's and binds its threads to them: outside what taskset allows, or, where a container forbids
    that, more threads than cores, which wait for each other.
    """
    return cores() if cores() < (os.cpu_count() or 1) else 0


def cpu_quota(root: Path = Path("/")) -> int | None:
    """Whole cores that a container's CPU quota pays for, at least 1; None without a quota. Linux control groups, v2
    (`cpu.max`) and v1 (`cpu.cfs_quota_us`); a group is held to the quotas of all groups above it."""
    shares = [quota / period for quota, period in _quotas(root) if quota > 0 and period > 0]
    return max(1, int(min(shares))) if shares else None  # rounded down: threads beyond the quota only wait for it


def _quotas(root: Path) -> Iterator[tuple[int, int]]:
    """(microseconds allowed, of how many) of every group this process is in that sets a quota; -1 is none."""
    mount = root / "sys/fs/cgroup"
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            for folder in (*_upwards(mount, group), *_upwards(mount / "unified", group)):
                yield from _numbers(_first_line(folder / "cpu.max").replace("max", "-1", 1))
        elif "cpu" in controllers.split(","):
            for folder in (*_upwards(mount / controllers, group), *_upwards(mount / "cpu", group)):
                quota, period = (_first_line(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
                yield from _numbers(f"{quota} {period}")


def _upwards(mount: Path, group: str) -> list[Path]:
    """A group's folder and those above it. In a container the group's own may be mounted as the topmost."""
    inside = PurePosixPath("/", group).relative_to("/")
    return [mount / part for part in (inside, *inside.parents)]


def _numbers(text: str) -> list[tuple[int, int]]:
    words = text.split()
    try:
        return [(int(words[0]), int(words[1]))]
    except (IndexError, ValueError):
        return []


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
