"""The light parts of the student that touch pixels: the image stem and the mask head."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def upsample_sum(maps: list[Tensor], size: torch.Size) -> Tensor:
    """Sum of feature maps of different resolution at `size`, bilinear, coarse to fine. [N, C, hs, ws] each."""
    total = maps[0]
    for finer in maps[1:]:
        if total.shape[-2:] != finer.shape[-2:]:
            total = F.interpolate(total, scale_factor=finer.shape[-1] // total.shape[-1], mode="bilinear")
        total = total + finer
    if total.shape[-2:] != size:
        total = F.interpolate(total, scale_factor=size[-1] // total.shape[-1], mode="bilinear")
    return total


class DetailStem(nn.Module):
    """Edges straight from the picture, once per image: three strided convolutions to the latent resolution.

    The latents of an autoencoder blur edges; this stem gives them back for a fraction of a percent of the trunk's cost.
    """

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.second = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.third = nn.Conv2d(2 * width, out, 3, padding=1)

    def forward(self, image: Tensor, size: torch.Size) -> Tensor:
        """image [B, 3, H, W] -> [B, out, h, w] with (h, w) = size, at most 1/4 of the picture."""
        x = F.silu(self.second(F.silu(self.first(image))))
        factor = x.shape[-1] // size[-1]
        return self.third(F.avg_pool2d(x, factor) if factor > 1 else x)


class MaskHead(nn.Module):
    """[N, Co, h, w] per prompt -> logits [N, u*h, u*w]: two small convolutions, then sub-pixel rearrangement."""

    def __init__(self, width: int, upsample: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(width, width, 3, padding=1)
        self.logits = nn.Conv2d(width, upsample**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(upsample)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(x)
        return self.shuffle(self.logits(F.silu(x + self.mix(x))))[:, 0]
