"""Devices an engine is built on, and the script that builds it there within a memory budget.

An engine is built on the machine that runs it, never here. Figures of the devices are NVIDIA's; nothing of this file's
output has been run on a device by us yet.
"""

from __future__ import annotations

from dataclasses import dataclass

from digseg_engine.errors import UsageError
from digseg_engine.precisions import PRECISIONS
from digseg_engine.runtime.profile import Profile


@dataclass(frozen=True)
class Target:
    """A device family: its smallest memory in GB, whether CPU and GPU share it, its compute capability (None: any)."""

    name: str
    memory_gb: int
    shared: bool
    tensorrt: str
    capability: int | None
    note: str

    @property
    def precisions(self) -> tuple[str, ...]:
        """What its tensor cores compute."""
        found = PRECISIONS.items()
        return tuple(name for name, spec in found if self.capability is None or spec.lowest[0] <= self.capability)


TARGETS = {
    t.name: t
    for t in (
        Target("jetson-orin", 32, True, "10.3 (JetPack 6) or 10.16 (JetPack 7.2)", 87, "AGX Orin, 32 or 64 GB"),
        Target("jetson-orin-nano", 8, True, "10.3 (JetPack 6)", 87, "Orin Nano and NX, 8 GB"),
        Target("jetson-thor", 128, True, "10.16 (JetPack 7.2)", 110, "Thor, 128 GB"),
        Target("desktop", 8, False, "10.3 to 11.x", None, "a GPU with 8 GB or more"),
    )
}  # fmt: skip


@dataclass(frozen=True)
class MemoryBudget:
    """What the build may use: workspace in MiB, builder level, free memory wanted before it starts in MiB."""

    workspace_mib: int
    builder_level: int
    free_mib: int


def find_target(name: str, precision: str) -> Target:
    """The target called `name`. Raises UsageError for an unknown one or a precision it cannot compute."""
    if name not in TARGETS:
        raise UsageError(f"unknown target {name!r}; expected one of {', '.join(TARGETS)}, web")
    target = TARGETS[name]
    if precision not in target.precisions:
        raise UsageError(
            f"--precision {precision} does not apply to --target {name}: its tensor cores have no {precision}; "
            f"expected one of {', '.join(target.precisions)}"
        )
    return target


def memory_budget(target: Target, weights_mib: int, workspace_mib: int | None, level: int | None) -> MemoryBudget:
    """A quarter of the memory for tactics (an eighth where CPU and GPU share it), between 256 MiB and 4 GiB.

    The build holds the weights about three times (file, network, engine) beside the workspace; 1 GiB more is for CUDA.
    """
    share = target.memory_gb * 1024 // (8 if target.shared else 4)
    workspace = max(256, min(share, 4096)) if workspace_mib is None else workspace_mib
    chosen = (2 if target.memory_gb <= 8 and target.shared else 3) if level is None else level
    return MemoryBudget(workspace, chosen, workspace + 3 * weights_mib + 1024)


def build_script(target: Target, budget: MemoryBudget, profile: Profile | None, precision: str) -> str:
    """The shell script that goes into the bundle; it refuses to start when the memory it needs is not free."""
    shapes = (
        "Shapes: the builder's defaults"
        if profile is None
        else "Shapes: " + ", ".join(f"{a} {r.min}..{r.max}" for a, r in profile.ranges.items())
    )
    return f"""#!/usr/bin/env bash
# Builds the TensorRT engines of this bundle on {target.note}. Run it on the device that will run them:
#     bash build-{target.name}.sh
# Needs TensorRT {target.tensorrt} with its Python bindings, and this project: `pip install -e .` in a clone.
# Precision {precision} is in the graphs; no builder flag sets it. {shapes}.
# Written from the documentation of TensorRT; not run by us yet.
set -euo pipefail
bundle="$(cd "$(dirname "${{BASH_SOURCE[0]}}")" && pwd)"
free_mib=$(awk '/MemAvailable/ {{print int($2 / 1024)}}' /proc/meminfo)
if [ "$free_mib" -lt {budget.free_mib} ]; then
  echo "the build needs about {budget.free_mib} MiB free (workspace {budget.workspace_mib}), found $free_mib;" >&2
  echo "stop the desktop (sudo systemctl isolate multi-user), add swap, or export with a smaller --workspace" >&2
  exit 1
fi
exec python3 -m digseg_export.to_tensorrt "$bundle" --workspace {budget.workspace_mib} \\
  --builder-optimization-level {budget.builder_level} "$@"
"""
