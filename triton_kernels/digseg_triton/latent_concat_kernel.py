"""Triton kernel of the sampler's step input: [image latent | mask latent] in one launch, optionally after a DDIM step.

Replaces repeat, scheduler update, scale, noise add, cat, cast and layout change. The image latent is read through L2
for its K prompts and never repeated in memory. Imports triton only; the caller is `latent_concat.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _mask_half(mask_ptr, velocity_ptr, noise_ptr, next_ptr, index, inside, a, b, scale, noise_scale,
               STEP: tl.constexpr, SCALED: tl.constexpr, NOISE: tl.constexpr):  # fmt: skip
    """Load the mask latent, take the scheduler step (and keep its result), scale it, add noise."""
    mask = tl.load(mask_ptr + index, mask=inside, other=0.0)
    if STEP:
        velocity = tl.load(velocity_ptr + index, mask=inside, other=0.0)
        mask = (a * mask.to(tl.float32) + b * velocity.to(tl.float32)).to(mask_ptr.dtype.element_ty)
        tl.store(next_ptr + index, mask, mask=inside)
    if SCALED:
        mask = scale * mask.to(tl.float32)
    if NOISE:
        noise = tl.load(noise_ptr + index, mask=inside, other=0.0)
        mask = mask.to(tl.float32) + noise_scale * noise.to(tl.float32)
    return mask


@triton.jit
def latent_concat_kernel(
    image_ptr,  # [B, 4, h, w]
    mask_ptr,  # [B*K, 4, h, w]
    velocity_ptr,  # [B*K, 4, h, w], the network's output; read if STEP
    noise_ptr,  # [B*K, 4, h, w]; read if NOISE
    pixels,  # h*w
    prompts,  # K
    a,  # next mask latent = a * mask + b * velocity
    b,
    scale,
    noise_scale,
    next_ptr,  # [B*K, 4, h, w]; written if STEP
    out_ptr,  # [B*K, 8, h, w], in memory [B*K, h, w, 8] if CHANNELS_LAST
    STEP: tl.constexpr,
    SCALED: tl.constexpr,
    NOISE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,  # pixels per program
):
    """Grid (pixels/BLOCK, B*K). Half a row of the output, 4*pixels values, is one flat run in memory unless NHWC."""
    row = tl.program_id(1).to(tl.int64)  # b*K + k
    half = pixels * 4
    image_ptr += (row // prompts) * half
    mask_ptr += row * half
    velocity_ptr += row * half
    noise_ptr += row * half
    next_ptr += row * half
    out_ptr += row * half * 2
    dtype = out_ptr.dtype.element_ty

    if CHANNELS_LAST:
        pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        index = pixel[:, None] + tl.arange(0, 4)[None, :] * pixels  # [BLOCK, 4]
        inside = (pixel < pixels)[:, None] & (tl.arange(0, 4) < 4)[None, :]
        image = tl.load(image_ptr + index, mask=inside, other=0.0).to(dtype)
        mask = _mask_half(mask_ptr, velocity_ptr, noise_ptr, next_ptr, index, inside, a, b, scale, noise_scale,
                          STEP, SCALED, NOISE).to(dtype)  # fmt: skip
        pair = tl.permute(tl.join(image, mask), (0, 2, 1))  # [BLOCK, 2, 4]
        pair = tl.reshape(pair, [BLOCK, 8])
        where = pixel[:, None] * 8 + tl.arange(0, 8)[None, :]
        tl.store(out_ptr + where, pair, mask=(pixel < pixels)[:, None] & (tl.arange(0, 8) < 8)[None, :])
    else:
        index = tl.program_id(0) * (BLOCK * 4) + tl.arange(0, BLOCK * 4)
        inside = index < half
        image = tl.load(image_ptr + index, mask=inside, other=0.0)
        tl.store(out_ptr + index, image.to(dtype), mask=inside)
        mask = _mask_half(mask_ptr, velocity_ptr, noise_ptr, next_ptr, index, inside, a, b, scale, noise_scale,
                          STEP, SCALED, NOISE)  # fmt: skip
        tl.store(out_ptr + half + index, mask.to(dtype), mask=inside)
