"""Losses of the mask stages. Logits and targets are [B, K, h, w]; targets in 0..1, empty for absent prompts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """1 - Dice per (picture, prompt), [B, K]; one smoothing pixel, so an empty prediction of an empty mask costs 0."""
    p = logits.sigmoid()
    overlap = 2 * (p * target).sum((-2, -1)) + 1
    return 1 - overlap / (p.sum((-2, -1)) + target.sum((-2, -1)) + 1)


def mask_loss(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(BCE, Dice), each a mean in which present and absent prompts weigh the same; Dice counts present ones only."""
    present = (target.amax((-2, -1)) > 0.5).float()  # [B, K]
    per_map = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((-2, -1))
    bce = 0.5 * _mean(per_map, present) + 0.5 * _mean(per_map, 1 - present)
    return bce, _mean(dice_loss(logits, target), present)


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum() / weights.sum().clamp(min=1)


def shrink(masks: Tensor, size: torch.Size) -> Tensor:
    """Area-average masks [B, K, H, W] to [B, K, *size]."""
    return F.adaptive_avg_pool2d(masks, (size[0], size[1]))
