"""Softmax over few tokens, shared by the two attention kernels. fp32 always; a fully masked row gives zero weights."""

from __future__ import annotations

import triton
import triton.language as tl

_LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def group_softmax(
    scores,  # [M, GROUP*TOKENS] fp32, -inf = masked
    GROUP: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """Softmax inside each of GROUP column groups -> [M, GROUP*TOKENS]; all -inf -> all zero."""
    M: tl.constexpr = scores.shape[0]
    scores = tl.reshape(scores * _LOG2E, [M, GROUP, TOKENS])
    top = tl.max(scores, 2)  # [M, GROUP]
    top = tl.where(top == float("-inf"), 0.0, top)
    weights = tl.exp2(scores - top[:, :, None])
    total = tl.sum(weights, 2)
    weights = weights / tl.where(total > 0.0, total, 1.0)[:, :, None]
    return tl.reshape(weights, [M, GROUP * TOKENS])


@triton.jit
def split_softmax(
    scores,  # [M, MAIN] fp32, -inf = masked
    late_scores,  # [M, TAIL]
):
    """One softmax over both pieces of a row -> ([M, MAIN], [M, TAIL]); all -inf -> all zero."""
    scores = scores * _LOG2E
    late_scores = late_scores * _LOG2E
    top = tl.maximum(tl.max(scores, 1), tl.max(late_scores, 1))  # [M]
    top = tl.where(top == float("-inf"), 0.0, top)
    weights = tl.exp2(scores - top[:, None])
    late_weights = tl.exp2(late_scores - top[:, None])
    total = tl.sum(weights, 1) + tl.sum(late_weights, 1)
    share = 1.0 / tl.where(total > 0.0, total, 1.0)[:, None]
    return weights * share, late_weights * share
