"""Whether a Triton kernel may run: one environment switch, and what this machine has. Touches no GPU at import.

`DIGSEG_TRITON` unset or `auto`: kernels where they work, the PyTorch twin elsewhere. `0` or `off`: twins only.
`1` or `force`: a kernel that cannot run is an error instead of a twin.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from functools import cache

import torch

VARIABLE = "DIGSEG_TRITON"
_MODES = {"": "auto", "auto": "auto", "0": "off", "off": "off", "1": "force", "force": "force"}
OLDEST_CAPABILITY = (8, 0)


class KernelUnavailableError(RuntimeError):
    """A kernel was demanded with DIGSEG_TRITON=force, and it cannot run on these tensors or this machine."""


def mode() -> str:
    """`auto`, `off` or `force`. Raises ValueError for any other value of the variable."""
    value = os.environ.get(VARIABLE, "").strip().lower()
    if value not in _MODES:
        raise ValueError(f"{VARIABLE} must be 0, 1, off, auto or force, got {value!r}; unset it for automatic choice")
    return _MODES[value]


def interpreting() -> bool:
    """True in a process started with TRITON_INTERPRET=1, where kernels run as Python on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def _has_triton() -> bool:
    try:
        spec = importlib.util.find_spec("triton")
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None  # a bare folder of that name is not Triton


@cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def why_not(device: torch.device) -> str | None:
    """Reason why kernels cannot run on `device`, or None if they can."""
    if not _has_triton():
        return "triton is not installed (pip install 'triton>=3.7.1')"
    if device.type != "cuda":
        return None if device.type == "cpu" and interpreting() else f"tensors are on {device.type}, kernels need cuda"
    if torch.version.hip is not None:
        return "this is a ROCm build of PyTorch, the kernels are compiled and checked for NVIDIA only"
    index = device.index if device.index is not None else torch.cuda.current_device()
    if _capability(index) < OLDEST_CAPABILITY:
        return f"compute capability {_capability(index)} is older than {OLDEST_CAPABILITY}"
    return None


def use_kernel(op: str, device: torch.device, unsupported: str | None = None) -> bool:
    """Decide for one call: True = launch, False = twin. `unsupported` names what this kernel cannot do, if anything.

    Raises KernelUnavailableError in `force` mode; warns once per reason when a CUDA call has to take the twin.
    """
    chosen = mode()
    if chosen == "off":
        return False
    reason = why_not(device) or unsupported
    if chosen == "force" and reason:
        raise KernelUnavailableError(f"{op}: the Triton kernel cannot run: {reason}; unset {VARIABLE} to use PyTorch")
    if device.type == "cpu":  # the interpreter is a debugging tool: only on demand
        return chosen == "force"
    if reason:
        _warn_once(f"{op}: running in plain PyTorch: {reason}")
    return reason is None


@cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)
