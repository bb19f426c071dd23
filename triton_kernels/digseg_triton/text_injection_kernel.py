"""Triton kernel of the text-injection attention: K prompts read one set of image features.

The text side is folded ahead of time, so a prompt costs two thin matrix products and a softmax. Two forms of keys:
absorbed (`D = C`, every head reads all channels) and split (`D = C / H`, the features are queries already projected,
once for all prompts, and head h reads its own D channels). A program owns one tile of the features and walks over
several prompts; heads are taken in groups whose tokens stand side by side in one product. Parameter order (inputs,
integers, output), no float scalars and no strides. Imports triton only; the
caller is `text_injection.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .softmax_kernel import group_softmax, split_softmax


@triton.jit
def _features(features_ptr, n, rows, start, C: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr):
    """[BM, CHUNK] tile of the features: channels start .. start+WIDTH, zeros beyond."""
    c = tl.arange(0, CHUNK)
    inside = (n < rows)[:, None] & ((c < WIDTH) & (start + c < C))[None, :]
    return tl.load(features_ptr + n[:, None] * C + (start + c)[None, :], mask=inside, other=0.0)


@triton.jit
def _scores(
    features,  # [BM, CHUNK], unless absorbed in several chunks
    features_ptr,  # [N, C] of this batch entry
    n,
    rows,
    keys_ptr,  # [D, L] of the first head of the group
    mask_ptr,  # [L] of this prompt
    inner,  # [T] head of each column, inside the group
    token,  # [T] token of each column
    C: tl.constexpr,
    D: tl.constexpr,
    L: tl.constexpr,
    CHUNK: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """[BM, T] fp32 scores, -inf where the token is masked or beyond L."""
    c = tl.arange(0, CHUNK)
    valid = (token < L)[None, :]
    keys_ptr += inner[None, :] * (D * L) + token[None, :]
    if D < C and GROUP > 1:  # block-diagonal: a column takes the channels of its own head only
        own = (c // D)[:, None] == inner[None, :]
        keys = tl.load(keys_ptr + (c % D)[:, None] * L, mask=own & valid, other=0.0)
        scores = tl.dot(features, keys, input_precision=PRECISION)
    elif CHUNK >= D:
        keys = tl.load(keys_ptr + c[:, None] * L, mask=(c < D)[:, None] & valid, other=0.0)
        scores = tl.dot(features, keys, input_precision=PRECISION)
    else:
        scores = tl.zeros([n.shape[0], token.shape[0]], tl.float32)
        for start in range(0, C, CHUNK):
            piece = _features(features_ptr, n, rows, start, C, CHUNK, CHUNK)
            keys = tl.load(keys_ptr + (start + c)[:, None] * L, mask=(start + c < C)[:, None] & valid, other=0.0)
            scores = tl.dot(piece, keys, scores, input_precision=PRECISION)
    keep = tl.load(mask_ptr + token, mask=token < L, other=0) != 0
    return tl.where(keep[None, :], scores, float("-inf"))


@triton.jit
def _values(values_ptr, shift, token, o, CO: tl.constexpr, L: tl.constexpr):
    """[T, COP] folded values of a group of columns."""
    return tl.load(values_ptr + shift[:, None] + o[None, :], mask=(token < L)[:, None] & (o < CO)[None, :], other=0.0)


@triton.jit
def _attend(acc, features, features_ptr, n, rows, keys_ptr, values_ptr, mask_ptr, prompt, head,
            C: tl.constexpr, CO: tl.constexpr, H: tl.constexpr, D: tl.constexpr, L: tl.constexpr,
            CHUNK: tl.constexpr, COP: tl.constexpr, GROUP: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr,
            PRECISION: tl.constexpr):  # fmt: skip
    """acc [BM, COP] + sum over heads head .. head+GROUP of softmax(features @ keys) @ values."""
    o = tl.arange(0, COP)
    column = tl.arange(0, GROUP * MAIN)
    token = column % MAIN
    inner = column // MAIN
    keys_ptr += (prompt * H + head) * (D * L)
    values_ptr += (prompt * H + head) * (L * CO)
    mask_ptr += prompt * L

    scores = _scores(features, features_ptr, n, rows, keys_ptr, mask_ptr, inner, token,
                     C, D, L, CHUNK, GROUP, PRECISION)  # fmt: skip
    if TAIL == 0:
        values = _values(values_ptr, inner * (L * CO) + token * CO, token, o, CO, L)
        weights = group_softmax(scores, GROUP, MAIN).to(values.dtype)
        acc = tl.dot(weights, values, acc, input_precision=PRECISION)
    else:  # one head whose tokens are split, such as 77 = 64 + 13
        late = MAIN + tl.arange(0, TAIL)
        late_scores = _scores(features, features_ptr, n, rows, keys_ptr, mask_ptr, late * 0, late,
                              C, D, L, CHUNK, GROUP, PRECISION)  # fmt: skip
        weights, late_weights = split_softmax(scores, late_scores)
        values = _values(values_ptr, token * CO, token, o, CO, L)
        acc = tl.dot(weights.to(values.dtype), values, acc, input_precision=PRECISION)
        late_values = _values(values_ptr, late * CO, late, o, CO, L)
        acc = tl.dot(late_weights.to(values.dtype), late_values, acc, input_precision=PRECISION)
    return acc


@triton.jit
def text_injection_kernel(
    features_ptr,  # [B, N, C]
    base_ptr,  # [B, N, CO]
    keys_ptr,  # [K, H, D, L], softmax scale folded in
    values_ptr,  # [K, H, L, CO], gate and output projection folded in
    mask_ptr,  # [K, L] bool, True = real token
    rows,  # N
    prompts,  # K
    span,  # prompts walked by one program
    out_ptr,  # [B, K, N, CO]
    C: tl.constexpr,
    CO: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,  # C (absorbed) or C / H (split)
    L: tl.constexpr,
    CHUNK: tl.constexpr,  # channels per product, a power of two
    RESIDENT: tl.constexpr,  # keep all features of the tile for all prompts
    COP: tl.constexpr,  # CO padded to a power of two
    GROUP: tl.constexpr,  # heads per product, divides H
    MAIN: tl.constexpr,  # tokens per head in the main product, a power of two
    TAIL: tl.constexpr,  # tokens in the second product, 0 = none
    BLOCK_M: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out[b,k,n] = base[b,n] + sum_h softmax_L(features[b,n] @ keys[k,h]) @ values[k,h]; grid (N/BM, K/span, B)."""
    batch = tl.program_id(2).to(tl.int64)
    features_ptr += batch * rows * C
    base_ptr += batch * rows * CO
    n = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    o = tl.arange(0, COP)
    tile = n[:, None] * CO + o[None, :]  # [BM, COP]
    tile_mask = (n < rows)[:, None] & (o < CO)[None, :]
    base = tl.load(base_ptr + tile, mask=tile_mask, other=0.0)
    WIDTH: tl.constexpr = C if D == C else GROUP * D  # channels a group of heads reads

    resident = ()
    if RESIDENT:
        for start in tl.static_range(0, C, WIDTH):
            resident = resident + (_features(features_ptr, n, rows, start, C, WIDTH, CHUNK),)  # type: ignore[assignment]  # noqa: RUF005

    first = tl.program_id(1) * span
    for prompt in range(first, tl.minimum(first + span, prompts)):
        acc = base.to(tl.float32)
        if RESIDENT and D < C:
            for i in tl.static_range(H // GROUP):
                acc = _attend(acc, resident[i], features_ptr, n, rows, keys_ptr, values_ptr, mask_ptr, prompt, i * GROUP,
                              C, CO, H, D, L, CHUNK, COP, GROUP, MAIN, TAIL, PRECISION)  # fmt: skip
        else:
            for head in range(0, H, GROUP):
                if RESIDENT:
                    features = resident[0]  # type: ignore[misc]
                elif D < C:
                    features = _features(features_ptr, n, rows, head * D, C, WIDTH, CHUNK)
                else:
                    features = base  # read in chunks by _scores
                acc = _attend(acc, features, features_ptr, n, rows, keys_ptr, values_ptr, mask_ptr, prompt, head,
                              C, CO, H, D, L, CHUNK, COP, GROUP, MAIN, TAIL, PRECISION)  # fmt: skip
        start_out = (batch * prompts + prompt) * rows * CO
        tl.store(out_ptr + start_out + tile, acc.to(out_ptr.dtype.element_ty), mask=tile_mask)
