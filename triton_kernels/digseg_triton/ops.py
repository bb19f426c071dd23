"""The public functions. Each runs its Triton kernel on a GPU and its PyTorch twin elsewhere (`environment.py`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import twins
from .cross_attention import cross_attention
from .latent_concat import ddim_coefficients, latent_concat, sampler_step
from .mask_argmax import mask_argmax
from .text_injection import text_injection

__all__ = [
    "cross_attention",
    "ddim_coefficients",
    "decompositions",
    "latent_concat",
    "mask_argmax",
    "sampler_step",
    "text_injection",
]


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Table for `ExportedProgram.run_decompositions`: every op becomes its twin, so the result needs no digseg_triton.

    To be used before ONNX export or AOTInductor packaging of a fused model. The `out` variants are not included.
    """
    names = ("text_injection", "cross_attention", "latent_concat", "sampler_step", "mask_argmax")
    return {getattr(torch.ops.digseg, name).default: getattr(twins, name) for name in names}
