"""What the latent-concatenation ops share: argument checks, the launch, and the choice between kernel and twin."""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks, twins
from .configs import choose
from .environment import use_kernel
from .launch import architecture, blocks, device_guard

OP = "latent_concat"
CHANNELS = 4


def _is_channels_last(out: Tensor) -> bool:
    """Memory format of `out`; where both hold (one pixel) it does not matter."""
    return not out.is_contiguous()


def check_out(out: Tensor, out_dtype: torch.dtype | None, channels_last: bool) -> None:
    if out_dtype is not None:
        checks.check_dtype(OP, "out", out, (out_dtype,))
    checks.require(
        out.is_contiguous(memory_format=torch.channels_last) or (out.is_contiguous() and not channels_last),
        OP,
        "`out`",
        "dense in channels_last format" if channels_last else "dense, contiguous or channels_last",
        f"strides {tuple(out.stride())}",
        "allocate it with torch.empty(..., memory_format=...)",
    )


def check_shapes(image_latent: Tensor, mask_latent: Tensor, likes: dict[str, Tensor | None], prompts: int) -> None:
    checks.check_rank(OP, "image_latent", image_latent, "B, 4, h, w")
    b, c, h, w = image_latent.shape
    checks.require(c == CHANNELS, OP, "`image_latent` channels", CHANNELS, c, "pass VAE latents")
    for name, tensor in {"mask_latent": mask_latent, **likes}.items():
        if tensor is not None:
            checks.check_shape(OP, name, tensor, "B*K, 4, h, w", (b * prompts, c, h, w))
            checks.check_dtype(OP, name, tensor, checks.FLOATS)
    checks.check_dtype(OP, "image_latent", image_latent, checks.FLOATS)


def _check(image_latent: Tensor, mask_latent: Tensor, likes: dict[str, Tensor | None], prompts: int) -> None:
    checks.require(prompts >= 1, OP, "`prompts`", "at least 1", prompts, "pass K, the rows of mask_latent per image")
    check_shapes(image_latent, mask_latent, likes, prompts)
    tensors = {"image_latent": image_latent, "mask_latent": mask_latent, **likes}
    checks.check_device(OP, tensors)
    for name, tensor in tensors.items():
        if tensor is not None:
            checks.check_contiguous(OP, name, tensor)
    checks.require(mask_latent.numel() > 0, OP, "`mask_latent`", "non-empty", tuple(mask_latent.shape), "pass pixels")
    checks.check_grid(OP, "mask_latent axis B*K", mask_latent.shape[0])
    checks.check_addressable(OP, "mask_latent", 2 * mask_latent[0].numel())


def _check_buffers(mask_latent: Tensor, out: Tensor, mask_out: Tensor | None = None) -> None:
    rows, _, h, w = mask_latent.shape
    checks.check_shape(OP, "out", out, "B*K, 8, h, w", (rows, 2 * CHANNELS, h, w))
    checks.check_dtype(OP, "out", out, checks.FLOATS)
    check_out(out, None, False)
    if mask_out is not None:
        checks.check_shape(OP, "mask_out", mask_out, "B*K, 4, h, w", mask_latent.shape)
        checks.check_dtype(OP, "mask_out", mask_out, (mask_latent.dtype,))
        checks.check_contiguous(OP, "mask_out", mask_out)
    checks.check_device(OP, {"mask_latent": mask_latent, "out": out, "mask_out": mask_out})


def launch(
    image_latent: Tensor,
    mask_latent: Tensor,
    velocity: Tensor | None,
    noise: Tensor | None,
    prompts: int,
    coefficients: tuple[float, float],
    scale: float,
    noise_scale: float,
    mask_out: Tensor | None,
    out: Tensor,
) -> None:
    """Start the kernel; `velocity` and `mask_out` are both given for a sampler step. Arguments are taken as checked."""
    from .latent_concat_kernel import latent_concat_kernel

    rows, _, h, w = mask_latent.shape
    config = choose(OP, architecture(mask_latent))
    with device_guard(mask_latent):
        latent_concat_kernel[(blocks(h * w, config.block), rows)](
            image_latent,
            mask_latent,
            mask_latent if velocity is None else velocity,
            mask_latent if noise is None else noise,
            h * w,
            prompts,
            float(coefficients[0]),
            float(coefficients[1]),
            float(scale),
            float(noise_scale),
            mask_latent if mask_out is None else mask_out,
            out,
            STEP=velocity is not None,
            SCALED=scale != 1.0,
            NOISE=noise is not None,
            CHANNELS_LAST=_is_channels_last(out),
            BLOCK=config.block,
            num_warps=config.warps,
            num_stages=config.stages,
        )


def empty(mask_latent: Tensor, dtype: torch.dtype, channels_last: bool) -> Tensor:
    rows, _, h, w = mask_latent.shape
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    shape = (rows, 2 * CHANNELS, h, w)
    return torch.empty(shape, dtype=dtype, device=mask_latent.device, memory_format=memory_format)


def run(
    image_latent: Tensor,
    mask_latent: Tensor,
    velocity: Tensor | None,
    noise: Tensor | None,
    prompts: int,
    coefficients: tuple[float, float],
    scale: float,
    noise_scale: float,
    mask_out: Tensor | None,
    out: Tensor,
) -> None:
    """Check, then fill the buffers by kernel or twin."""
    _check(image_latent, mask_latent, {"velocity": velocity, "noise": noise}, prompts)
    _check_buffers(mask_latent, out, mask_out)
    if use_kernel(OP, mask_latent.device):
        launch(image_latent, mask_latent, velocity, noise, prompts, coefficients, scale, noise_scale, mask_out, out)
        return
    layout = (out.dtype, _is_channels_last(out))
    if velocity is None or mask_out is None:
        out.copy_(twins.latent_concat(image_latent, mask_latent, noise, prompts, scale, noise_scale, *layout))
        return
    following, latents = twins.sampler_step(
        image_latent, mask_latent, velocity, noise, prompts, *coefficients, scale, noise_scale, *layout
    )
    mask_out.copy_(following)
    out.copy_(latents)
