"""Put the ops into a model and take them out again, instance by instance.

A module that can be fused has `kernel_slots: dict[str, Callable]`, from op name to the callable it uses. `fuse` gives
the instance a new dict with our functions; `unfuse` puts the very object back that was there. Classes are never
touched, parameters and buffers neither.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from . import environment, ops

SLOTS: dict[str, Callable[..., Any]] = {
    "cross_attention": ops.cross_attention,
    "latent_concat": ops.latent_concat,
    "mask_argmax": ops.mask_argmax,
    "sampler_step": ops.sampler_step,
    "text_injection": ops.text_injection,
}
_KEPT = "_digseg_unfused_slots"
_ABSENT = object()  # the dict belonged to the class


@dataclass(frozen=True)
class FuseReport:
    """What `fuse` did.

    `fused` and `unknown` hold `module.path:slot`; `twin_reason` is None where kernels will launch.
    """

    fused: tuple[str, ...]
    unknown: tuple[str, ...]
    twin_reason: str | None

    def __str__(self) -> str:
        runs = "Triton kernels" if self.twin_reason is None else f"PyTorch twins ({self.twin_reason})"
        ignored = f"; unknown slots left alone: {', '.join(self.unknown)}" if self.unknown else ""
        return f"{len(self.fused)} slots fused, running {runs}{ignored}"


def fuse(model: nn.Module) -> FuseReport:
    """Swap every known slot of every submodule to our op. Doing it twice changes nothing. Works on any device."""
    fused, unknown = [], []
    for path, module in model.named_modules():
        slots = getattr(module, "kernel_slots", None)
        if not isinstance(slots, dict):
            continue
        known = {name: SLOTS[name] for name in slots if name in SLOTS}
        unknown += [f"{path}:{name}" for name in slots if name not in SLOTS]
        fused += [f"{path}:{name}" for name in known]
        if known and _KEPT not in module.__dict__:
            module.__dict__[_KEPT] = module.__dict__.get("kernel_slots", _ABSENT)
            module.__dict__["kernel_slots"] = {**slots, **known}
    return FuseReport(tuple(fused), tuple(unknown), _twin_reason(model))


def unfuse(model: nn.Module) -> int:
    """Put back what `fuse` replaced; returns how many modules were restored, 0 for a model that is not fused."""
    restored = 0
    for module in model.modules():
        if _KEPT not in module.__dict__:
            continue
        original = module.__dict__.pop(_KEPT)
        if original is _ABSENT:
            del module.__dict__["kernel_slots"]
        else:
            module.__dict__["kernel_slots"] = original
        restored += 1
    return restored


def _twin_reason(model: nn.Module) -> str | None:
    """Why kernels will not launch for this model where it is now, or None."""
    if environment.mode() == "off":
        return f"{environment.VARIABLE} turns kernels off"
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    return environment.why_not(device)
