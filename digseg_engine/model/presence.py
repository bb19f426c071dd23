"""Presence: one logit per prompt, is it in the picture at all, read before anything costly is computed.

The readout sees the coarse scales, each cell as the trunk describes it and as the prompt's text changed it, and what the
prompt's last token says as a whole, by which it weighs the cell's channels (FiLM: Perez et al. 2018, arXiv:1709.07871). Every
cell says how much it looks like the prompt, and the strongest ones decide, so that a small thing counts as much as a large one.
It has neither head nor finest scale. That a promptable segmenter asks "is it there" apart from "where" follows SAM 3 (Meta
2025); the form is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from digseg_engine.model.mask_head import upsample_sum

SHARPNESS = 4.0  # a cell counts by the exponential of so many times what it says: nearly the maximum over all


@dataclass(frozen=True)
class CoarseScale:
    """What is known of a coarse scale: queries [B, C, hs, ws], bases [B, Co, hs, ws], and the bases with every prompt's text
    injected [B, K, Co, hs, ws]."""

    query: Tensor
    base: Tensor
    mixed: Tensor


class PresenceHead(nn.Module):
    """Coarse scales and what every prompt says as a whole -> presence logits [B, K].

    width: channels C of queries; head_width: channels Co of bases; text_width: numbers that say what a prompt means;
    inner: channels of the readout; strides: of the coarse scales, coarse to fine.
    """

    def __init__(self, width: int, head_width: int, text_width: int, inner: int, strides: list[int]) -> None:
        super().__init__()
        self.strides = strides
        self.see = nn.ModuleList(nn.Conv2d(width + head_width, inner, 1) for _ in strides)
        self.near = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)  # what lies around a cell
        self.read = nn.ModuleList(nn.Conv2d(head_width, inner, 1) for _ in strides)
        self.norm = nn.LayerNorm(text_width)
        self.weigh = nn.Linear(text_width, 2 * inner)
        self.mix = nn.Conv2d(inner, inner, 1)
        self.evidence = nn.Conv2d(inner, 1, 1)

    def forward(self, scales: list[CoarseScale], meaning: Tensor) -> Tensor:
        """meaning: [K, text_width]."""
        said = self.cells(scales, meaning).flatten(2)  # [B, K, cells]
        return ((said * SHARPNESS).softmax(-1) * said).sum(-1)

    def cells(self, scales: list[CoarseScale], meaning: Tensor) -> Tensor:
        """What every cell says, logits [B, K, h, w]."""
        b, k = scales[0].mixed.shape[:2]
        seen = upsample_sum([see(torch.cat([s.query, s.base], 1)) for see, s in zip(self.see, scales)], self.strides)
        seen = seen + self.near(F.silu(seen))  # [B, P, h, w], once per picture
        told = upsample_sum([read(s.mixed.flatten(0, 1)) for read, s in zip(self.read, scales)], self.strides)
        scale, shift = self.weigh(self.norm(meaning))[..., None, None].chunk(2, 1)  # [K, P, 1, 1] each
        cells = F.silu(told.unflatten(0, (b, k)) + seen[:, None] * (1 + scale) + shift).flatten(0, 1)
        cells = cells + F.silu(self.mix(cells))
        return self.evidence(cells)[:, 0].unflatten(0, (b, k))


def meaning_of(keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """What a prompt's last token says: folded keys [K, S, H, d, L], values [K, S, H, L, Co], mask [K, L] -> [K, S*H*(d+Co)]."""
    following = F.pad(mask[:, 1:], (0, 1))
    last = (mask & ~following).to(keys.dtype)[:, None, None, None]  # [K, 1, 1, 1, L]
    key = (keys * last).sum(-1)  # [K, S, H, d]
    value = (values * last.transpose(-1, -2)).sum(-2)  # [K, S, H, Co]
    return torch.cat([key, value], -1).flatten(1)
