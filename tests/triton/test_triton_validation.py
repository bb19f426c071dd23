"""Wrong arguments: a ValueError that names the argument, what was expected, what came, and the next step."""

from __future__ import annotations

import pytest
import torch
from triton_support import text_inputs

from digseg_triton import checks, ops


def change(index, make):
    """text_injection with one argument replaced."""
    inputs = text_inputs(2, 3, 10, 12, 5, 2, 7, torch.float32)
    inputs[index] = make(inputs[index])
    return ops.text_injection(*inputs)


@pytest.mark.parametrize(
    ("index", "make", "message"),
    [
        (0, lambda x: x[0], r"`features` must be a tensor \[B, N, C\], got shape \(10, 12\)"),
        (1, lambda x: x[:, :9], r"`base` .* must be of shape \(2, 10, 5\), got \(2, 9, 5\)"),
        (
            2,
            lambda x: x[:, :, :11],
            r"`keys` axis D must be C = 12 \(absorbed\) or C / H \(split\), got 11 for H = 2",
        ),
        (3, lambda x: x[:, :1], r"`values` .* must be of shape \(3, 2, 7, 5\), got \(3, 1, 7, 5\)"),
        (3, lambda x: x.half(), r"`values` must be float32, got torch.float16; convert it"),
        (0, lambda x: x.double(), r"`features` must be float32 or float16 or bfloat16, got torch.float64"),
        (4, lambda x: x.float(), r"`token_mask` must be bool, got torch.float32"),
        (4, lambda x: x[:2], r"`token_mask` .* must be of shape \(3, 7\), got \(2, 7\)"),
        (2, lambda x: x.mT.contiguous().mT, r"`keys` must be contiguous, got strides .*call keys.contiguous\(\)"),
    ],
)
def test_text_injection(index, make, message):
    with pytest.raises(ValueError, match=message):
        change(index, make)


def test_mixed_devices():
    tensors = {"features": torch.empty(1), "noise": None, "keys": torch.empty(1, device="meta")}
    with pytest.raises(ValueError, match="`keys` must be on cpu, got meta; move all arguments to one device"):
        checks.check_device("text_injection", tensors)


def test_text_injection_limits():
    with pytest.raises(ValueError, match="token count L must be at most 128, got 129; cut the prompt"):
        ops.text_injection(*text_inputs(1, 1, 2, 4, 4, 1, 129, torch.float32))
    many = text_inputs(1, 1, 1, 1, 1, 1, 1, torch.float32)
    many[2:] = [value.expand(70000, *value.shape[1:]).contiguous() for value in many[2:]]
    with pytest.raises(ValueError, match="`keys axis K` must be at most 65535 entries, got 70000; split the call"):
        ops.text_injection(*many)
    empty = text_inputs(1, 1, 2, 4, 4, 1, 3, torch.float32)
    empty[0], empty[1] = empty[0][:, :0], empty[1][:, :0]
    with pytest.raises(ValueError, match="`features` must be non-empty"):
        ops.text_injection(*empty)


def test_cross_attention():
    x, mask = torch.randn(2, 3, 8, 4), torch.ones(2, 8, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"`value` .* must be of shape \(2, 3, 8, 4\), got \(2, 3, 7, 4\)"):
        ops.cross_attention(x, x, x[:, :, :7], mask, 1.0)
    with pytest.raises(ValueError, match=r"`query` must be contiguous as .* or as .* transposed, got strides"):
        ops.cross_attention(x.mT.contiguous().mT, x, x, mask, 1.0)
    with pytest.raises(ValueError, match="`key` and `value` must be in the same layout"):
        ops.cross_attention(x, x, x.transpose(1, 2).contiguous().transpose(1, 2), mask, 1.0)
    with pytest.raises(ValueError, match="`token_mask` must be bool"):
        ops.cross_attention(x, x, x, mask.int(), 1.0)


def test_latent_concat():
    image, mask = torch.randn(2, 4, 5, 6), torch.randn(6, 4, 5, 6)
    with pytest.raises(ValueError, match=r"`mask_latent` .* must be of shape \(4, 4, 5, 6\), got \(6, 4, 5, 6\)"):
        ops.latent_concat(image, mask, prompts=2)
    with pytest.raises(ValueError, match="`image_latent` channels must be 4, got 3; pass VAE latents"):
        ops.latent_concat(image[:, :3], mask, prompts=3)
    with pytest.raises(ValueError, match=r"`noise` .* must be of shape"):
        ops.latent_concat(image, mask, prompts=3, noise=image)
    with pytest.raises(ValueError, match="`mask_latent` must be contiguous"):
        ops.latent_concat(image, mask.to(memory_format=torch.channels_last), prompts=3)
    with pytest.raises(ValueError, match=r"`out` must be float16, got torch.float32"):
        ops.latent_concat(image, mask, prompts=3, out=torch.empty(6, 8, 5, 6), out_dtype=torch.float16)
    with pytest.raises(ValueError, match="`out` must be dense in channels_last format"):
        ops.latent_concat(image, mask, prompts=3, out=torch.empty(6, 8, 5, 6), channels_last=True)
    with pytest.raises(ValueError, match=r"`out` .* must be of shape \(6, 8, 5, 6\), got \(6, 7, 5, 6\)"):
        ops.latent_concat(image, mask, prompts=3, out=torch.empty(6, 7, 5, 6))
    with pytest.raises(ValueError, match="`prompts` must be at least 1, got 0"):
        ops.latent_concat(image, mask[:0], prompts=0)


def test_sampler_step():
    image, mask = torch.randn(2, 4, 5, 6), torch.randn(6, 4, 5, 6)
    step = {"prompts": 3, "mask_coefficient": 1.0, "v_coefficient": 0.0}
    with pytest.raises(ValueError, match="`out` and `mask_out` must both be given"):
        ops.sampler_step(image, mask, mask, **step, out=torch.empty(6, 8, 5, 6))
    with pytest.raises(ValueError, match="`mask_out` not being `mask_latent`"):
        ops.sampler_step(image, mask, mask, **step, out=torch.empty(6, 8, 5, 6), mask_out=mask)
    with pytest.raises(ValueError, match=r"`mask_out` must be float32, got torch.float16"):
        ops.sampler_step(image, mask, mask, **step, out=torch.empty(6, 8, 5, 6), mask_out=torch.empty_like(mask).half())
    with pytest.raises(ValueError, match=r"`mask_out` .* must be of shape"):
        ops.sampler_step(image, mask, mask, **step, out=torch.empty(6, 8, 5, 6), mask_out=torch.empty(1))
    with pytest.raises(ValueError, match="`velocity` must be contiguous"):
        ops.sampler_step(image, mask, mask.to(memory_format=torch.channels_last), **step)
    with pytest.raises(ValueError, match=r"`alpha_bar` must be in 0..1, got 1.5; pass alphas_cumprod"):
        ops.ddim_coefficients(1.5, 0.0)


def test_mask_argmax():
    logits = torch.randn(1, 2, 3, 4)
    with pytest.raises(ValueError, match=r"`logits` must be a tensor \[B, K, h, w\]"):
        ops.mask_argmax(logits[0], (6, 8))
    with pytest.raises(ValueError, match=r"H must be in 1..16384, got 0; label the image in tiles"):
        ops.mask_argmax(logits, (0, 8))
    with pytest.raises(ValueError, match="`logits` must be contiguous"):
        ops.mask_argmax(logits.mT, (6, 8))
    with pytest.raises(ValueError, match="`logits` must be non-empty"):
        ops.mask_argmax(logits[:, :0], (6, 8))
