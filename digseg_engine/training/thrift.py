"""What lowers the memory of a stage: activations computed twice instead of kept, 8-bit moments, averages on the CPU, and only
the networks that a stage uses on the device.

Chen et al. 2016 (arXiv 1604.06174) for recomputed activations, Dettmers et al. 2022 (arXiv 2110.02861) for 8-bit moments.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from accelerate import PartialState
from diffusers import ModelMixin
from torch import nn

from digseg_engine.errors import UsageError
from digseg_engine.model.student import Student
from digseg_engine.training.muon import Muon

BETAS = (0.9, 0.98)
NETWORKS = ("vae", "text_encoder", "reference", "student")  # of a checkpoint


def resolve_precision(precision: str) -> str:
    """`auto` is bf16 on a GPU that computes in it and plain float32 elsewhere; anything else is itself."""
    if precision != "auto":
        return precision
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"


def autocast(device: str, precision: str) -> torch.autocast:
    """Mixed precision "bf16" or "fp16", or none ("no"). PyTorch's own: accelerate's, in some releases, stays on after a loss
    that raises."""
    return torch.autocast(device, torch.float16 if precision == "fp16" else torch.bfloat16, enabled=precision != "no")


def make_optimizer(
    name: str, weights: Iterable[nn.Parameter], rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """`adamw`, `adamw8bit` (needs bitsandbytes) or `muon`. Raises UsageError for another name or a missing package."""
    makers: dict[str, Callable[..., torch.optim.Optimizer]] = {
        # fused: one kernel over all weights, where the list form would hold another copy of them
        "adamw": partial(torch.optim.AdamW, betas=BETAS, fused=torch.cuda.is_available() or None),
        "adamw8bit": _adamw8bit,
        "muon": Muon,
    }
    if name not in makers:
        raise UsageError(f"optimizer must be one of {', '.join(makers)}, got {name!r}")
    return makers[name](weights, rate, weight_decay=weight_decay)


def _adamw8bit(weights: Iterable[nn.Parameter], rate: float, weight_decay: float) -> torch.optim.Optimizer:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise UsageError("optimizer adamw8bit needs the package bitsandbytes, which is not installed; run: pip install "
                         "bitsandbytes, or use adamw") from error  # fmt: skip
    optimizer: torch.optim.Optimizer = AdamW8bit(weights, rate, betas=BETAS, weight_decay=weight_decay)
    return optimizer


@contextmanager
def recomputing(active: bool, *modules: nn.Module) -> Iterator[None]:
    """While open, the blocks of these networks keep their inputs only and compute the rest again in the backward pass.

    The gradients are the same; a step costs one more forward pass of the blocks.
    """
    if active:
        _recompute(modules, True)
    try:
        yield
    finally:
        if active:
            _recompute(modules, False)


def _recompute(modules: Iterable[nn.Module], on: bool) -> None:
    for part in (part for module in modules for part in module.modules()):
        if isinstance(part, ModelMixin) and part._supports_gradient_checkpointing:
            (part.enable_gradient_checkpointing if on else part.disable_gradient_checkpointing)()
        elif isinstance(part, Student):
            part.recompute_answers = on


@contextmanager
def tf32(active: bool) -> Iterator[None]:
    """While open, an NVIDIA GPU multiplies float32 matrices in TF32 (10 bits of mantissa); nothing changes on a CPU."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if active and torch.cuda.is_available() else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def keep_on_device(checkpoint: Any, names: Collection[str]) -> None:
    """The networks of a checkpoint that a stage asks to this process's device, its others to the CPU."""
    device = PartialState().device if torch.cuda.is_available() else torch.device("cpu")
    for name in NETWORKS:
        getattr(checkpoint, name).to(device if name in names else "cpu")
