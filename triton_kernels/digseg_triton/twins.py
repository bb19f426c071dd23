"""The ops in plain PyTorch: what each kernel must compute, and what runs wherever a kernel does not.

Nothing here needs Triton. Softmax is fp32; a prompt whose tokens are all padding adds nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_softmax(scores: Tensor, keep: Tensor, axis: int = -1) -> Tensor:
    """Softmax over `axis` where `keep`, in fp32 (fp64 stays fp64); a row with nothing kept is all zeros."""
    scores = scores if scores.dtype == torch.float64 else scores.float()
    return scores.masked_fill(~keep, torch.finfo(scores.dtype).min).softmax(axis) * keep


def text_injection(features: Tensor, base: Tensor, keys: Tensor, values: Tensor, token_mask: Tensor) -> Tensor:
    """[B,N,C], [B,N,Co], [K,H,D,L], [K,H,L,Co], [K,L] -> [B,K,N,Co]; see `text_injection.text_injection`."""
    k, heads, depth, length = keys.shape
    split = depth != features.shape[-1] or heads == 1
    n = features.shape[1]
    queries = features.transpose(
        1, 2
    )  # [B, C, N]: pixels stay last, so that the softmax over tokens runs along vectors
    queries = queries.unflatten(1, (heads, depth)) if split else queries[:, None]  # [B, H or 1, D, N]
    together = keys.permute(1, 0, 3, 2).reshape(heads, k * length, depth)  # one product per head serves all prompts
    scores = (together @ queries).unflatten(2, (k, length))  # [B, H, K, L, N]
    weights = masked_softmax(scores, token_mask[:, :, None], axis=-2).to(values.dtype)
    weights = weights.transpose(1, 2).reshape(-1, k, heads * length, n)  # [B, K, H*L, N]
    mixed = values.flatten(1, 2).transpose(1, 2) @ weights  # [B, K, Co, N]
    return (base.transpose(1, 2)[:, None] + mixed).transpose(2, 3)


def cross_attention(query: Tensor, key: Tensor, value: Tensor, token_mask: Tensor, scale: float) -> Tensor:
    """[B,H,N,D], [B,H,L,D], [B,H,L,D], [B,L] -> [B,H,N,D]; see `cross_attention.cross_attention`."""
    scores = (query * scale) @ key.transpose(-1, -2)  # [B, H, N, L]
    weights = masked_softmax(scores, token_mask[:, None, None, :])
    return weights.to(value.dtype) @ value


def latent_concat(
    image_latent: Tensor,
    mask_latent: Tensor,
    noise: Tensor | None,
    prompts: int,
    scale: float,
    noise_scale: float,
    out_dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    """[B,4,h,w], [B*K,4,h,w] -> [B*K,8,h,w]; see `latent_concat.latent_concat`."""
    mask = mask_latent
    if scale != 1.0:
        mask = mask.float() * scale
    if noise is not None:
        mask = mask.float() + noise.float() * noise_scale
    image = image_latent.repeat_interleave(prompts, 0)  # [B*K, 4, h, w]
    latents = torch.cat([image.to(out_dtype), mask.to(out_dtype)], 1)
    return latents.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def sampler_step(
    image_latent: Tensor,
    mask_latent: Tensor,
    velocity: Tensor,
    noise: Tensor | None,
    prompts: int,
    mask_coefficient: float,
    v_coefficient: float,
    scale: float,
    noise_scale: float,
    out_dtype: torch.dtype,
    channels_last: bool,
) -> tuple[Tensor, Tensor]:
    """DDIM step, then `latent_concat` of its result: -> ([B*K,4,h,w], [B*K,8,h,w])."""
    following = mask_coefficient * mask_latent.float() + v_coefficient * velocity.float()
    following = following.to(mask_latent.dtype)
    latents = latent_concat(image_latent, following, noise, prompts, scale, noise_scale, out_dtype, channels_last)
    return following, latents


def mask_argmax(logits: Tensor, height: int, width: int, threshold: float) -> tuple[Tensor, Tensor]:
    """[B,K,h,w] -> ([B,H,W] int32, [B,H,W] fp32), one prompt at a time; see `mask_argmax.mask_argmax`."""
    batch, prompts = logits.shape[:2]
    best = torch.full((batch, height, width), -torch.inf, dtype=torch.float32, device=logits.device)
    label = torch.zeros((batch, height, width), dtype=torch.int32, device=logits.device)
    for prompt in range(prompts):
        plane = logits[:, prompt : prompt + 1].float()
        value = F.interpolate(plane, (height, width), mode="bilinear", align_corners=False)[:, 0]  # [B, H, W]
        better = value > best
        best = torch.where(better, value, best)
        label = torch.where(better, prompt + 1, label)
    return torch.where(best > threshold, label, 0), best
