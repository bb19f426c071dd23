"""Triton kernel of the reference's cross-attention: long image queries, at most 128 text keys, one pass, no LSE.

All keys of a head sit in one program, so there is no online softmax. Tokens (77 = 64 + 13) and head width
(80 = 64 + 16, 160 = 128 + 32) are split into powers of two instead of padded to the next one. Imports triton only;
the caller is `cross_attention.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .softmax_kernel import group_softmax, split_softmax


@triton.jit
def _load(
    base_ptr,  # first element of one head
    row,  # row indices
    rows,
    column,  # column indices, known at compile time
    ROW_STEP,  # elements between rows
    D: tl.constexpr,
):
    return tl.load(
        base_ptr + row[:, None] * ROW_STEP + column[None, :],
        mask=(row < rows)[:, None] & (column < D)[None, :],
        other=0.0,
    )


@triton.jit
def _scores(q, q_late, key_ptr, token, L: tl.constexpr, step: tl.constexpr, D: tl.constexpr, DM: tl.constexpr,
            DT: tl.constexpr, mask_ptr, SCALE: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """[M, tokens] fp32 scores of one piece of the tokens, -inf where masked."""
    key = _load(key_ptr, token, L, tl.arange(0, DM), step, D)  # [tokens, DM]
    scores = tl.dot(q, tl.trans(key), input_precision=PRECISION)
    if DT > 0:
        late = _load(key_ptr, token, L, DM + tl.arange(0, DT), step, D)
        scores = tl.dot(q_late, tl.trans(late), scores, input_precision=PRECISION)
    keep = tl.load(mask_ptr + token, mask=token < L, other=0) != 0
    return tl.where(keep[None, :], scores * SCALE, float("-inf"))


@triton.jit
def cross_attention_kernel(
    query_ptr,  # [B, H, N, D], in memory [B, N, H, D] if Q_PACKED
    key_ptr,  # [B, H, L, D], in memory [B, L, H, D] if KV_PACKED
    value_ptr,  # like key
    mask_ptr,  # [B, L] bool, True = real token
    rows,  # N
    out_ptr,  # layout of query
    H: tl.constexpr,
    L: tl.constexpr,
    D: tl.constexpr,
    DM: tl.constexpr,  # D = DM + DT, both powers of two after padding
    DT: tl.constexpr,
    MAIN: tl.constexpr,  # L = MAIN + TAIL, likewise
    TAIL: tl.constexpr,
    SCALE: tl.constexpr,
    Q_PACKED: tl.constexpr,
    KV_PACKED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out = softmax(scale * query @ key^T, masked) @ value; a row without tokens gives zeros; grid (N/BM, H, B)."""
    head = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    q_step: tl.constexpr = H * D if Q_PACKED else D
    kv_step: tl.constexpr = H * D if KV_PACKED else D
    q_start = (batch * rows * H + head) * D if Q_PACKED else (batch * H + head) * rows * D
    kv_start = (batch * L * H + head) * D if KV_PACKED else (batch * H + head) * L * D
    query_ptr += q_start
    out_ptr += q_start
    key_ptr += kv_start
    value_ptr += kv_start
    mask_ptr += batch * L

    n = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, DM)
    token = tl.arange(0, MAIN)
    q = _load(query_ptr, n, rows, d, q_step, D)  # [BM, DM]
    q_late = q
    if DT > 0:
        q_late = _load(query_ptr, n, rows, DM + tl.arange(0, DT), q_step, D)  # [BM, DT]
    scores = _scores(q, q_late, key_ptr, token, L, kv_step, D, DM, DT, mask_ptr, SCALE, PRECISION)
    dtype = value_ptr.dtype.element_ty
    if TAIL == 0:
        weights = group_softmax(scores, 1, MAIN).to(dtype)
        late_weights = weights
    else:
        late_token = MAIN + tl.arange(0, TAIL)
        late_scores = _scores(q, q_late, key_ptr, late_token, L, kv_step, D, DM, DT, mask_ptr, SCALE, PRECISION)
        weights, late_weights = split_softmax(scores, late_scores)
        weights = weights.to(dtype)
        late_weights = late_weights.to(dtype)

    for piece in tl.static_range(2 if DT > 0 else 1):
        column = d if piece == 0 else DM + tl.arange(0, DT)
        acc = tl.dot(weights, _load(value_ptr, token, L, column, kv_step, D), input_precision=PRECISION)
        if TAIL > 0:
            late_value = _load(value_ptr, MAIN + tl.arange(0, TAIL), L, column, kv_step, D)
            acc = tl.dot(late_weights, late_value, acc, input_precision=PRECISION)
        tl.store(
            out_ptr + n[:, None] * q_step + column[None, :],
            acc.to(out_ptr.dtype.element_ty),
            mask=(n < rows)[:, None] & (column < D)[None, :],
        )
