"""Triton kernel of the text-injection attention: K prompts read one set of image features.

Absorbed form: queries and output projection are folded into `keys` and `values` ahead of time, so a prompt costs two
thin matrix products and a softmax. A program owns one tile of the features and walks over several prompts; heads are
taken in groups whose tokens stand side by side in one product. Narrow features stay in registers for all prompts,
wide ones are read again in chunks. Parameter order (inputs, integers, output), no float scalars and no strides: what
an ahead-of-time plugin can pass. Imports triton only; the caller is `text_injection.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .softmax_kernel import group_softmax, split_softmax


@triton.jit
def _features(features_ptr, n, rows, start, C: tl.constexpr, CHUNK: tl.constexpr):
    """[BM, CHUNK] tile of the features, from channel `start`."""
    c = start + tl.arange(0, CHUNK)
    return tl.load(features_ptr + n[:, None] * C + c[None, :], mask=(n < rows)[:, None] & (c < C)[None, :], other=0.0)


@triton.jit
def _scores(
    features,  # [BM, CHUNK], all channels if CHUNK >= C
    features_ptr,  # [N, C] of this batch entry
    n,
    rows,
    keys_ptr,  # [C, L] of the first head of the group
    mask_ptr,  # [L] of this prompt
    shift,  # [T] offset of each column in keys, without the channel
    token,  # [T] token of each column
    C: tl.constexpr,
    L: tl.constexpr,
    CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """[BM, T] fp32 scores, -inf where the token is masked or beyond L."""
    c = tl.arange(0, CHUNK)
    valid = (token < L)[None, :]
    if CHUNK >= C:
        keys = tl.load(keys_ptr + c[:, None] * L + shift[None, :], mask=(c < C)[:, None] & valid, other=0.0)
        scores = tl.dot(features, keys, input_precision=PRECISION)
    else:
        scores = tl.zeros([n.shape[0], token.shape[0]], tl.float32)
        for start in range(0, C, CHUNK):
            piece = _features(features_ptr, n, rows, start, C, CHUNK)
            keys = tl.load(
                keys_ptr + (start + c)[:, None] * L + shift[None, :], mask=(start + c < C)[:, None] & valid, other=0.0
            )  # [CHUNK, T]
            scores = tl.dot(piece, keys, scores, input_precision=PRECISION)
    keep = tl.load(mask_ptr + token, mask=token < L, other=0) != 0
    return tl.where(keep[None, :], scores, float("-inf"))


@triton.jit
def _values(values_ptr, shift, token, o, CO: tl.constexpr, L: tl.constexpr):
    """[T, COP] folded values of a group of columns."""
    return tl.load(values_ptr + shift[:, None] + o[None, :], mask=(token < L)[:, None] & (o < CO)[None, :], other=0.0)


@triton.jit
def _attend(acc, features, features_ptr, n, rows, keys_ptr, values_ptr, mask_ptr, prompt, head,
            C: tl.constexpr, CO: tl.constexpr, H: tl.constexpr, L: tl.constexpr, CHUNK: tl.constexpr,
            COP: tl.constexpr, GROUP: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr,
            PRECISION: tl.constexpr):  # fmt: skip
    """acc [BM, COP] + sum over heads head .. head+GROUP of softmax(features @ keys) @ values."""
    o = tl.arange(0, COP)
    column = tl.arange(0, GROUP * MAIN)
    token = column % MAIN
    inner = column // MAIN  # head inside the group
    keys_ptr += (prompt * H + head) * (C * L)
    values_ptr += (prompt * H + head) * (L * CO)
    mask_ptr += prompt * L

    scores = _scores(features, features_ptr, n, rows, keys_ptr, mask_ptr, inner * (C * L) + token, token,
                     C, L, CHUNK, PRECISION)  # fmt: skip
    if TAIL == 0:
        values = _values(values_ptr, inner * (L * CO) + token * CO, token, o, CO, L)
        weights = group_softmax(scores, GROUP, MAIN).to(values.dtype)
        acc = tl.dot(weights, values, acc, input_precision=PRECISION)
    else:  # one head whose tokens are split, such as 77 = 64 + 13
        late = MAIN + tl.arange(0, TAIL)
        late_scores = _scores(features, features_ptr, n, rows, keys_ptr, mask_ptr, late, late, C, L, CHUNK, PRECISION)
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
    keys_ptr,  # [K, H, C, L], softmax scale folded in
    values_ptr,  # [K, H, L, CO], gate and output projection folded in
    mask_ptr,  # [K, L] bool, True = real token
    rows,  # N
    prompts,  # K
    span,  # prompts walked by one program
    out_ptr,  # [B, K, N, CO]
    C: tl.constexpr,
    CO: tl.constexpr,
    H: tl.constexpr,
    L: tl.constexpr,
    CHUNK: tl.constexpr,  # channels per product, a power of two; >= C keeps the features resident
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
    features = base
    if CHUNK >= C:
        features = _features(features_ptr, n, rows, 0, C, CHUNK)  # kept for every prompt of this program

    first = tl.program_id(1) * span
    for prompt in range(first, tl.minimum(first + span, prompts)):
        acc = base.to(tl.float32)
        if GROUP == H:
            acc = _attend(acc, features, features_ptr, n, rows, keys_ptr, values_ptr, mask_ptr, prompt, 0,
                          C, CO, H, L, CHUNK, COP, GROUP, MAIN, TAIL, PRECISION)  # fmt: skip
        else:
            for head in range(0, H, GROUP):
                acc = _attend(acc, features, features_ptr, n, rows, keys_ptr, values_ptr, mask_ptr, prompt, head,
                              C, CO, H, L, CHUNK, COP, GROUP, MAIN, TAIL, PRECISION)  # fmt: skip
        start = (batch * prompts + prompt) * rows * CO
        tl.store(out_ptr + start + tile, acc.to(out_ptr.dtype.element_ty), mask=tile_mask)
