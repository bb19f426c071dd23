"""Label map straight from low-resolution logits: bilinear upsampling and arg max over prompts in one pass.

Logits are upsampled, never labels. Half-pixel centres without corner alignment, as
`torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import checks, twins
from .configs import choose
from .constants import mask_argmax_constants
from .environment import use_kernel
from .launch import architecture, blocks, device_guard

OP = "mask_argmax"
LARGEST_SIDE = 16384  # keeps the exact integer coordinates below 2**31


def mask_argmax(logits: Tensor, size: tuple[int, int], threshold: float = 0.0) -> tuple[Tensor, Tensor]:
    """Which prompt wins at every pixel, without a full-size `[B, K, H, W]` tensor.

    Args:
        logits: `[B, K, h, w]` float32, float16 or bfloat16, contiguous.
        size: (H, W) of the label map, each at most 16384.
        threshold: a pixel is background unless its best logit is above this; 0 is the decision border.

    Returns:
        labels `[B, H, W]` int32: 0 = background, k+1 = prompt k (the first of equals);
        score `[B, H, W]` float32: the winning logit. Neither carries a gradient. NaN logits never win.

    Raises:
        ValueError: shape, dtype or contiguity does not fit.
        KernelUnavailableError: DIGSEG_TRITON=force and the kernel cannot run.
    """
    labels, score = torch.ops.digseg.mask_argmax(logits, size[0], size[1], threshold)
    return labels, score


def _check(logits: Tensor, height: int, width: int) -> None:
    checks.check_rank(OP, "logits", logits, "B, K, h, w")
    checks.check_dtype(OP, "logits", logits, checks.FLOATS)
    checks.check_contiguous(OP, "logits", logits)
    checks.check_grid(OP, "logits axis B", logits.shape[0])
    checks.require(logits.numel() > 0, OP, "`logits`", "non-empty", tuple(logits.shape), "pass at least one prompt")
    for name, side in {"H": height, "W": width, "h": logits.shape[2], "w": logits.shape[3]}.items():
        checks.require(1 <= side <= LARGEST_SIDE, OP, name, f"in 1..{LARGEST_SIDE}", side, "label the image in tiles")


def launch(logits: Tensor, threshold: float, labels: Tensor, score: Tensor) -> None:
    """Start the kernel; `labels` int32 and `score` fp32 are contiguous [B, H, W]. Arguments are taken as checked."""
    from .mask_argmax_kernel import mask_argmax_kernel

    (b, k, h, w), (_, height, width) = logits.shape, labels.shape
    config = choose(OP, architecture(logits))
    constants = mask_argmax_constants(h, height, width, config)
    with device_guard(logits):
        mask_argmax_kernel[(blocks(width, constants["BLOCK"]), (h + 1) * constants["PARTS"], b)](
            logits,
            k,
            h,
            w,
            height,
            width,
            float(threshold),
            labels,
            score,
            **constants,
            num_warps=config.warps,
            num_stages=config.stages,
        )


@torch.library.custom_op("digseg::mask_argmax", mutates_args=())
def _op(logits: Tensor, height: int, width: int, threshold: float) -> tuple[Tensor, Tensor]:
    _check(logits, height, width)
    if not use_kernel(OP, logits.device):
        return twins.mask_argmax(logits, height, width, threshold)
    labels, score = _fake(logits, height, width, threshold)
    launch(logits, threshold, labels, score)
    return labels, score


@_op.register_fake
def _fake(logits: Tensor, height: int, width: int, threshold: float) -> tuple[Tensor, Tensor]:
    checks.check_rank(OP, "logits", logits, "B, K, h, w")
    shape = (logits.shape[0], height, width)
    return logits.new_empty(shape, dtype=torch.int32), logits.new_empty(shape, dtype=torch.float32)


@register_flop_formula(torch.ops.digseg.mask_argmax)
def _flops(*_: object, **__: object) -> int:
    """No matrix product: counted as zero, like `interpolate` and `max`."""
    return 0
