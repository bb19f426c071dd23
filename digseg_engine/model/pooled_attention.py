"""Self-attention of the student's trunk to cells that stand for several: keys and values are averages of pool x pool cells.

Every cell still asks for itself; what it looks at is a grid pool times as coarse along a side, so that scores cost 1 / pool² of
what they did. At the coarsest grid of the network, which is small and may have odd sides, attention stays as it is. Our decision,
not the paper's; weights trained without it keep nearly all of what they reach (`benchmarks/attention_pool.py`).
"""

from __future__ import annotations

from typing import Any

from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor
from torch.nn import functional as F

Grid = tuple[int, int]  # rows, columns


class PooledSelfAttention:
    """What diffusers calls an attention's processor."""

    def __init__(self, pool: int) -> None:
        self.pool = pool

    def __call__(self, attention: Attention, hidden_states: Tensor, *_: Any, grid: Grid, **__: Any) -> Tensor:
        """hidden_states [B, rows * columns, C] -> the same shape; rows and columns are multiples of `pool`."""
        cells = hidden_states.transpose(1, 2).unflatten(2, grid)
        few = F.avg_pool2d(cells, self.pool).flatten(2).transpose(1, 2)
        found = (attention.to_q(hidden_states), attention.to_k(few), attention.to_v(few))
        query, keys, values = (x.unflatten(2, (attention.heads, -1)).transpose(1, 2) for x in found)
        mixed = F.scaled_dot_product_attention(query, keys, values, scale=attention.scale)
        out: Tensor = attention.to_out[0](mixed.transpose(1, 2).flatten(2))
        return out


class CrossAttention(AttnProcessor2_0):
    """diffusers' own, for the other attentions of a pooled block, which are told the grid too."""

    def __call__(
        self, attn: Attention, hidden_states: Tensor, *args: Any, grid: Grid | None = None, **more: Any
    ) -> Tensor:
        out: Tensor = super().__call__(attn, hidden_states, *args, **more)
        return out


def pool_attention(unet: UNet2DConditionModel, pool: int) -> None:
    """Make the self-attentions of every block finer than the coarsest ones look at averages of pool x pool cells, in place;
    1 takes that back."""
    for block in (*unet.down_blocks[:-1], *unet.up_blocks[1:]):
        if not getattr(block, "has_cross_attention", False) or (pool == 1 and not getattr(block, "pooled", False)):
            continue
        block.pooled = pool > 1  # `run_unet` tells it the grid
        own: dict[str, Any] = {"attn1": PooledSelfAttention(pool), "attn2": CrossAttention()}
        for module in block.modules():
            for name, processor in own.items():
                attention = getattr(module, name, None)
                if isinstance(attention, Attention):
                    attention.set_processor(processor if pool > 1 else AttnProcessor2_0())
