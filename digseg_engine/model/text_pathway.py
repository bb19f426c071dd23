"""The text pathway: one gated cross-attention (`TextInjection`) per decoder scale.

DiGSeg (arXiv 2604.24575) names a CLIP-aligned text pathway that injects language at several scales; its inner form is
our decision. Two equal forms of the same weights:

* paired - features of sample i attend to text of sample i (the reference: one prompt per sample);
* folded - features F shared by K prompts: out_k = base + sum_h softmax(Q_h Kt_kh) Vt_kh with Q = F Wq projected once
  per picture, and Kt = K^T * scale, Vt = g V Wo R folded from the text alone and cached with the prompt (the student).
  R is the linear reduction to fewer channels; it commutes with the residual, so `base = F R` is computed once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from digseg_triton import twins

Slots = dict[str, Callable[..., Any]]
text_injection = twins.text_injection  # the plain form of the folded attention, and of the fused kernel


def attend(query: Tensor, key: Tensor, value: Tensor, token_mask: Tensor, scale: float) -> Tensor:
    """Plain paired attention: query [B, H, N, d], key and value [B, H, L, d], token_mask [B, L] -> [B, H, N, d]."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=token_mask[:, None, None, :], scale=scale)


class TextInjection(nn.Module):
    """Gated cross-attention from one scale's features to a prompt's tokens.

    `gate` starts at zero, so a fresh injection leaves its features unchanged (the reference before training is exactly
    the pretrained network).
    """

    def __init__(self, width: int, text_dim: int, heads: int, gate: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(8 if width % 8 == 0 else 1, width)
        self.text_norm = nn.LayerNorm(text_dim)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(text_dim, width, bias=False)
        self.value = nn.Linear(text_dim, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate = nn.Parameter(torch.tensor(float(gate)))
        self.kernel_slots: Slots = {"cross_attention": attend}

    @property
    def scale(self) -> float:
        return (self.query.out_features // self.heads) ** -0.5

    def forward(self, features: Tensor, text: Tensor, token_mask: Tensor | None) -> Tensor:
        """Paired form: features [B, C, h, w], text [B, L, D], token_mask [B, L] -> features + gate * attention."""
        b, c, height, width = features.shape
        tokens = self.norm(features).flatten(2).transpose(1, 2)  # [B, hw, C]
        text = self.text_norm(text)
        q, k, v = (self._split(x) for x in (self.query(tokens), self.key(text), self.value(text)))
        if token_mask is None:
            token_mask = text.new_ones(text.shape[:2], dtype=torch.bool)
        mixed = self.kernel_slots["cross_attention"](q, k, v, token_mask, self.scale)  # [B, H, hw, d]
        mixed = self.out(mixed.transpose(1, 2).reshape(b, -1, c))
        return features + self.gate * mixed.transpose(1, 2).reshape(b, c, height, width)

    def fold(self, text: Tensor, reduce: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Folded text of K prompts: text [K, L, D], reduce [Co, C] -> keys [K, H, d, L], values [K, H, L, Co]."""
        text = self.text_norm(text)
        k, v = self._split(self.key(text)), self._split(self.value(text))  # [K, H, L, d]
        back = self.out.weight if reduce is None else reduce @ self.out.weight  # [Co, C]
        back = back.view(-1, self.heads, k.shape[-1]).permute(1, 2, 0)  # [H, d, Co]
        return (k * self.scale).transpose(-1, -2), self.gate * torch.matmul(v, back)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, H, N, d]


class TextPathway(nn.Module):
    """One `TextInjection` per decoder scale of the reference. Callable with (scale, features, text, mask)."""

    def __init__(self, widths: list[int], text_dim: int, heads: int) -> None:
        super().__init__()
        self.injections = nn.ModuleList(TextInjection(width, text_dim, heads) for width in widths)

    def forward(self, scale: int, features: Tensor, text: Tensor, token_mask: Tensor | None) -> Tensor:
        return self.injections[scale](features, text, token_mask)
