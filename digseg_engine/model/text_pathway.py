"""The text pathway: one gated cross-attention (`TextInjection`) per decoder scale.

DiGSeg (arXiv 2604.24575) names a CLIP-aligned text pathway that injects language at several scales; its inner form is
our decision. Two equal forms of the same weights:

* paired    - features of sample i attend to text of sample i (the reference: one prompt per sample);
* absorbed  - features F shared by K prompts: out_k = base + sum_h softmax(F Kt_kh) Vt_kh with Kt = Wq^T K * scale and
              Vt = g V Wo R folded from the text alone and cached with the prompt (the student). R is the linear
              reduction to fewer channels; it commutes with the residual, so `base = F R` is computed once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MASKED = -1e4  # added to the score of a padded token; large enough to vanish, small enough for fp16


def text_injection(features: Tensor, base: Tensor, keys: Tensor, values: Tensor, token_mask: Tensor) -> Tensor:
    """The absorbed form, K prompts over shared features.

    features [B, N, C], base [B, N, Co], keys [K, H, C, L], values [K, H, L, Co], token_mask [K, L] bool.
    Returns [B, K, N, Co]. The softmax runs in float32; a prompt without any token contributes nothing.
    """
    b, n, c = features.shape
    k, h, _, length = keys.shape
    flat = keys.permute(2, 0, 1, 3).reshape(c, k * h * length)  # one product serves all prompts
    scores = (features @ flat).view(b, n, k, h, length).float()  # [B, N, K, H, L]
    bias = (~token_mask).to(scores.dtype) * MASKED
    weights = torch.softmax(scores + bias[:, None, :], dim=-1) * token_mask[:, None, :].to(scores.dtype)
    weights = weights.to(values.dtype).permute(0, 2, 1, 3, 4).reshape(b, k, n, h * length)  # [B, K, N, H*L]
    return base[:, None] + weights @ values.reshape(k, h * length, -1)  # [B, K, N, Co]


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

    @property
    def scale(self) -> float:
        return (self.query.out_features // self.heads) ** -0.5

    def forward(self, features: Tensor, text: Tensor, token_mask: Tensor | None) -> Tensor:
        """Paired form: features [B, C, h, w], text [B, L, D], token_mask [B, L] -> features + gate * attention."""
        b, c, height, width = features.shape
        tokens = self.norm(features).flatten(2).transpose(1, 2)  # [B, hw, C]
        text = self.text_norm(text)
        q, k, v = (self._split(x) for x in (self.query(tokens), self.key(text), self.value(text)))
        allowed = None if token_mask is None else token_mask[:, None, None, :]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)  # [B, H, hw, d]
        mixed = self.out(mixed.transpose(1, 2).reshape(b, -1, c))
        return features + self.gate * mixed.transpose(1, 2).reshape(b, c, height, width)

    def fold(self, text: Tensor, reduce: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Absorbed matrices of K prompts: text [K, L, D], reduce [Co, C] -> keys [K, H, C, L], values [K, H, L, Co]."""
        text = self.text_norm(text)
        k, v = self._split(self.key(text)), self._split(self.value(text))  # [K, H, L, d]
        d = k.shape[-1]
        into = self.query.weight.view(self.heads, d, -1)  # [H, d, C]
        back = self.out.weight if reduce is None else reduce @ self.out.weight  # [Co, C]
        back = back.view(-1, self.heads, d).permute(1, 2, 0)  # [H, d, Co]
        keys = torch.matmul(k * self.scale, into).transpose(-1, -2)  # [K, H, C, L]
        return keys, self.gate * torch.matmul(v, back)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, H, N, d]


class TextPathway(nn.Module):
    """One `TextInjection` per decoder scale of the reference. Callable with (scale, features, text, mask)."""

    def __init__(self, widths: list[int], text_dim: int, heads: int) -> None:
        super().__init__()
        self.injections = nn.ModuleList(TextInjection(width, text_dim, heads) for width in widths)

    def forward(self, scale: int, features: Tensor, text: Tensor, token_mask: Tensor | None) -> Tensor:
        return self.injections[scale](features, text, token_mask)


Injection = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
