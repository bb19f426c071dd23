"""Presence: one logit per prompt, is it in the picture at all, read before anything costly is computed.

The readout sees the coarse scales with the prompt's text injected, cell by cell, and pools over all cells by learned
attention, so that a small thing counts as much as a large one. It has neither head nor finest scale. That a promptable
segmenter asks "is it there" apart from "where" follows SAM 3 (Meta 2025); the form is ours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PresenceHead(nn.Module):
    """[B, K, Ns, Co] of every coarse scale -> presence logits [B, K]."""

    def __init__(self, head_width: int, width: int, scales: int) -> None:
        super().__init__()
        self.read = nn.ModuleList(nn.Linear(head_width, width) for _ in range(scales))
        self.mix = nn.Linear(width, width)
        self.evidence = nn.Linear(width, 2)  # how much a cell counts, and what it says

    def forward(self, maps: list[Tensor]) -> Tensor:
        cells = torch.cat([read(x) for read, x in zip(self.read, maps)], dim=2)  # [B, K, N, P]
        cells = F.silu(cells)
        weight, said = self.evidence(F.silu(cells + self.mix(cells))).unbind(-1)  # [B, K, N] each
        return (weight.softmax(-1) * said).sum(-1)
