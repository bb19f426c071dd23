"""The light parts of the student that touch pixels: the image stem and the mask head."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def upsample_sum(maps: list[Tensor], strides: list[int]) -> Tensor:
    """Sum of feature maps [N, C, hs, ws] at the finest resolution, bilinear, coarse to fine; strides end with 1."""
    total = maps[0]
    for finer, stride, finer_stride in zip(maps[1:], strides, strides[1:]):
        if stride != finer_stride:
            total = F.interpolate(total, scale_factor=float(stride // finer_stride), mode="bilinear")
        total = total + finer
    return total


def _groups(width: int) -> int:
    return 8 if width % 8 == 0 else 1


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside an identity (pre-activation, He et al. 2016); starts as exactly the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(_groups(width), width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(self.norm(x)))))


class DetailStem(nn.Module):
    """Detail straight from the picture, once per image: two strided convolutions to latent resolution, two readers.

    The latents of an autoencoder blur edges and fine texture; this stem gives them back for a few percent of the
    trunk's cost. `to_trunk` is added after the U-Net's first convolution (as a T2I-Adapter does, Mou et al. 2023) and
    starts at zero, so that a fresh trunk is exactly the pretrained one; `to_head` sharpens every prompt's map.
    `blocks` residual blocks after either convolution let the stem see the outline of a small object whole.
    """

    def __init__(self, width: int, blocks: int, trunk_width: int, head_width: int, latent_stride: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(latent_stride // 4) if latent_stride > 4 else nn.Identity()
        self.first = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.fine = nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)))
        self.second = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.coarse = nn.Sequential(*(ResidualBlock(2 * width) for _ in range(blocks)))
        self.norm = nn.GroupNorm(_groups(2 * width), 2 * width)
        self.to_trunk = nn.Conv2d(2 * width, trunk_width, 3, padding=1)
        self.to_head = nn.Conv2d(2 * width, head_width, 3, padding=1)
        nn.init.zeros_(self.to_trunk.weight)
        nn.init.zeros_(self.to_trunk.bias)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """image [B, 3, H, W] -> for the trunk [B, C0, h, w], for the head [B, Co, h, w]."""
        fine = self.fine(self.first(image))
        x = self.pool(F.silu(self.norm(self.coarse(self.second(F.silu(fine))))))
        return self.to_trunk(x), self.to_head(x)


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
