"""The random numbers of a loss: a pure function of the run's seed and the number of the micro-batch."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

NoiseKind = Literal["gaussian", "multi-resolution"]
STRENGTH = 0.9  # of a level, relative to the one twice as fine (Marigold's)
SMALLEST = 2  # cells of the coarsest level's shorter side


def generator(seed: int, number: int) -> torch.Generator:
    """A CPU generator for micro-batch `number` of the run with `seed`, unlike that of any other pair."""
    mixed = np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed) >> 1)


def draw_noise(kind: NoiseKind, shape: torch.Size, random: torch.Generator, share: Tensor) -> Tensor:
    """Noise [B, C, h, w] of unit variance; share [B]: t over the last t.

    "multi-resolution": normal noise of ever coarser grids added, the coarse ones by strength ** level, annealed so that little
    noise (small t) is plain again (Ke et al. 2024, Marigold, arXiv 2312.02145, section 3.3).
    """
    noise = torch.randn(shape, generator=random)
    if kind == "gaussian":
        return noise
    strength = (STRENGTH * share.float())[:, None, None, None]  # [B, 1, 1, 1]
    variance = torch.ones_like(strength)
    height, width = shape[-2:]
    level = 1
    while min(height, width) >> level >= SMALLEST:
        coarse = torch.randn((*shape[:2], height >> level, width >> level), generator=random)
        noise = noise + strength**level * F.interpolate(coarse, size=(height, width), mode="nearest")
        variance = variance + strength ** (2 * level)
        level += 1
    return noise / variance.sqrt()
