"""Triton kernel of the label map: bilinear upsampling of logits and arg max over prompts, nothing full-size in memory.

Output rows between the same two source rows form a band. A program owns a few rows of one band and BLOCK columns: per
prompt it reads four short vectors, interpolates along x once and along y per row. Band borders are exact integer
arithmetic, for any size ratio. Imports triton only; the caller is `mask_argmax.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def mask_argmax_kernel(
    logits_ptr,  # [B, K, h, w]
    prompts,  # K
    source_h,  # h
    source_w,  # w
    height,  # H
    width,  # W
    threshold,  # labels only where the best logit is above it
    label_ptr,  # [B, H, W] int32
    score_ptr,  # [B, H, W] fp32
    PARTS: tl.constexpr,  # programs per band
    ROWS: tl.constexpr,  # output rows per program
    BLOCK: tl.constexpr,  # output columns per program
):
    """label = k+1 of the largest upsampled logit, 0 where it is <= threshold; grid (W/BLOCK, (h+1)*PARTS, B)."""
    band = tl.program_id(1) // PARTS - 1  # floor of the source row; -1 lies above the first row's centre
    part = tl.program_id(1) % PARTS
    batch = tl.program_id(2).to(tl.int64)

    # Rows y with floor(((2y + 1) h - H) / 2H) = band start at ceil((H (2 band + 1) - h) / 2h).
    start = tl.cdiv(tl.maximum(height * (2 * band + 1) - source_h, 0), 2 * source_h)
    stop = tl.cdiv(tl.maximum(height * (2 * band + 3) - source_h, 0), 2 * source_h)
    y = start + part * ROWS + tl.arange(0, ROWS)
    step_y = (2 * y + 1) * source_h - height * (2 * band + 1)
    weight_y = tl.where(band < 0, 0.0, step_y.to(tl.float32) / (2.0 * height))[:, None]  # [ROWS, 1]
    upper = tl.maximum(band, 0)
    lower = tl.minimum(band + 1, source_h - 1)

    x = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place = tl.maximum((2 * x + 1) * source_w - width, 0)  # source x times 2W, clamped at the first centre
    left = tl.minimum(place // (2 * width), source_w - 1)
    right = tl.minimum(left + 1, source_w - 1)
    weight_x = (place - left * (2 * width)).to(tl.float32) / (2.0 * width)  # [BLOCK]
    inside = x < width

    best = tl.full([ROWS, BLOCK], float("-inf"), tl.float32)
    label = tl.full([ROWS, BLOCK], 0, tl.int32)
    plane = logits_ptr + batch * prompts * source_h * source_w
    for prompt in range(0, prompts):
        above = plane + upper * source_w
        below = plane + lower * source_w
        a = tl.load(above + left, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(above + right, mask=inside, other=0.0).to(tl.float32)
        c = tl.load(below + left, mask=inside, other=0.0).to(tl.float32)
        d = tl.load(below + right, mask=inside, other=0.0).to(tl.float32)
        top = a + weight_x * (b - a)
        rise = c + weight_x * (d - c) - top
        value = top[None, :] + weight_y * rise[None, :]  # [ROWS, BLOCK]
        better = value > best
        best = tl.where(better, value, best)
        label = tl.where(better, prompt + 1, label)
        plane += source_h * source_w

    label = tl.where(best > threshold, label, 0)
    index = batch * height * width + y[:, None] * width + x[None, :]
    owned = (y < tl.minimum(stop, height))[:, None] & inside[None, :]
    tl.store(label_ptr + index, label, mask=owned)
    tl.store(score_ptr + index, best, mask=owned)
