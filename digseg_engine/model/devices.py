"""Where a module is, and the one switch between plain PyTorch and the Triton kernels."""

from __future__ import annotations

import torch
from torch import nn


def device_of(module: nn.Module) -> torch.device:
    """Where a module's weights are."""
    return next(module.parameters()).device


def use_kernels(module: nn.Module) -> str:
    """Give a module that is on an NVIDIA GPU the kernels of `digseg_triton`, in place; elsewhere it keeps its plain
    functions. Every slot of it (`kernel_slots`) is switched here and nowhere else.

    Returns what will run, for people; "" where nothing was switched. `digseg_triton.unfuse` puts the plain ones back.
    """
    if device_of(module).type != "cuda":
        return ""
    from digseg_triton import fuse

    return str(fuse(module))
