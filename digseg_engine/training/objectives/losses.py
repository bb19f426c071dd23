"""Losses of the mask stages. Logits and targets are [B, K, h, w]; targets in 0..1, empty for absent prompts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def dice_loss(logits: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """1 - Dice per (picture, prompt), [B, K]; one smoothing pixel, so an empty prediction of an empty mask costs 0."""
    p = logits.sigmoid()
    if valid is not None:
        p, target = p * valid, target * valid
    overlap = 2 * (p * target).sum((-2, -1)) + 1
    return 1 - overlap / (p.sum((-2, -1)) + target.sum((-2, -1)) + 1)


def mask_loss(logits: Tensor, target: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(BCE, Dice), each a mean in which present and absent prompts weigh the same; Dice counts present ones only.

    valid: weight of every pixel, [B, K or 1, h, w] in 0..1; None counts all. Maps without a valid pixel count nowhere.
    """
    error = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    if valid is None:
        present, per_map = (target.amax((-2, -1)) > 0.5).float(), error.mean((-2, -1))  # [B, K]
        absent = 1 - present
    else:
        present = (torch.where(valid > 0, target, 0.0).amax((-2, -1)) > 0.5).float()
        absent = (1 - present) * (valid.sum((-2, -1)) > 0)
        per_map = (error * valid).sum((-2, -1)) / valid.sum((-2, -1)).clamp(min=1e-6)
    bce = 0.5 * _mean(per_map, present) + 0.5 * _mean(per_map, absent)
    return bce, _mean(dice_loss(logits, target, valid), present)


def ranking_loss(logits: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """How far prompts that hold at a pixel are from outranking all that do not: mean log(1 + sum exp(false - true)).

    BCE over a whole map hardly notices a small region answered by a similar prompt; this counts labelled pixels only.
    """
    known = torch.ones_like(target, dtype=torch.bool) if valid is None else (valid > 0.5).expand_as(target)
    true, false = (target > 0.5) & known, (target < 0.5) & known
    strongest = logits.masked_fill(~false, torch.finfo(logits.dtype).min).logsumexp(1, keepdim=True)
    return _mean(F.softplus(strongest - logits), true.to(logits.dtype))


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum() / weights.sum().clamp(min=1)


def shrink(masks: Tensor, size: torch.Size) -> Tensor:
    """Area-average masks [B, K, H, W] to [B, K, *size]."""
    return F.adaptive_avg_pool2d(masks, (size[0], size[1]))


def shrink_labels(masks: Tensor, valid: Tensor | None, size: torch.Size) -> tuple[Tensor, Tensor | None]:
    """Masks [B, K, H, W] averaged over the valid pixels [B, K or 1, H, W] of every cell, and the cells' weights."""
    if valid is None:
        return shrink(masks, size), None
    weight = shrink(valid, size)
    return shrink(masks * valid, size) / weight.clamp(min=1e-6), weight


def latent_error(error: Tensor, valid: Tensor | None) -> Tensor:
    """Mean of an error over latents [B, C, h, w] per picture, [B]; a cell counts when all its pixels are valid [B, 1, H, W]."""
    if valid is None:
        return error.mean((1, 2, 3))
    height, width = error.shape[-2:]
    weight = 1 - F.adaptive_max_pool2d(1 - valid, (height, width))
    return (error * weight).sum((1, 2, 3)) / (weight.sum((1, 2, 3)) * error.shape[1]).clamp(min=1)
