"""The encoding of a picture: one tensor that holds everything no prompt changes, in the order of `contract.py`.

Every scale's queries and bases and the head's detail have their own resolution, all whole multiples of the coarsest
grid [rows, columns] = [H / stride, W / stride]. Folded onto that grid (space to depth, r x r cells become r*r channels) they are
channels of one tensor [B, M, rows, columns], coarse to fine: what presence reads is a prefix, and a graph has one border
with two free axes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Layout:
    """Where things lie in an encoding. width: channels C of queries; head_width: channels Co of bases and of the detail;
    ratios: r of every scale, coarse to fine; the detail has the last one."""

    width: int
    head_width: int
    ratios: tuple[int, ...]

    @property
    def coarse(self) -> int:
        """How many scales are coarser than the finest (at least the first): what presence reads."""
        return max(1, sum(ratio < self.ratios[-1] for ratio in self.ratios))

    @property
    def channels(self) -> int:
        """M of the encoding."""
        scales = sum((self.width + self.head_width) * ratio**2 for ratio in self.ratios)
        return scales + self.head_width * self.ratios[-1] ** 2

    def pack(self, scales: list[Tensor], detail: Tensor) -> Tensor:
        """Queries and bases [B, C + Co, hs, ws] of every scale, detail [B, Co, h, w] -> [B, M, rows, columns]."""
        parts = [F.pixel_unshuffle(found, ratio) for found, ratio in zip(scales, self.ratios)]
        return torch.cat([*parts, F.pixel_unshuffle(detail, self.ratios[-1])], dim=1)

    def scales(self, encoding: Tensor, count: int | None = None) -> list[tuple[Tensor, Tensor]]:
        """The first `count` scales (default: all): (queries [B, C, hs, ws], bases [B, Co, hs, ws]) each."""
        found, start = [], 0
        for ratio in self.ratios[:count]:
            middle = start + self.width * ratio**2
            end = middle + self.head_width * ratio**2
            query, base = encoding[:, start:middle], encoding[:, middle:end]
            found.append((F.pixel_shuffle(query, ratio), F.pixel_shuffle(base, ratio)))
            start = end
        return found

    def detail(self, encoding: Tensor) -> Tensor:
        """What the head adds to every prompt's map: [B, Co, h, w]."""
        ratio = self.ratios[-1]
        return F.pixel_shuffle(encoding[:, self.channels - self.head_width * ratio**2 :], ratio)
