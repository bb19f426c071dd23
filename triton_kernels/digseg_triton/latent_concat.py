"""The sampler's step input: image latent next to mask latent, optionally after a DDIM step, in one launch.

DDIM (Song et al. 2021, eq. 12 with eta = 0) under v-prediction (Salimans & Ho 2022, appendix D) is a linear map of
mask latent and network output, so it needs two coefficients and never divides: safe at zero terminal SNR.

Here are the public functions, their argument checks, the launch, and the registered ops with fake and backward, each with a
variant that fills buffers; the kernel itself is in `latent_concat_kernel.py`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import checks, twins
from .configs import choose
from .environment import use_kernel
from .launch import architecture, blocks, device_guard
from .recompute import recompute

OP = "latent_concat"
CHANNELS = 4


def ddim_coefficients(alpha_bar: float, alpha_bar_next: float) -> tuple[float, float]:
    """(mask_coefficient, v_coefficient) of a deterministic step from signal power `alpha_bar` to `alpha_bar_next`.

    Both in 0..1; 0 is pure noise (zero terminal SNR), 1 the clean latent. Raises ValueError outside.
    """
    for name, value in {"alpha_bar": alpha_bar, "alpha_bar_next": alpha_bar_next}.items():
        checks.require(0.0 <= value <= 1.0, "ddim_coefficients", f"`{name}`", "in 0..1", value, "pass alphas_cumprod")
    signal, noise = math.sqrt(alpha_bar), math.sqrt(1.0 - alpha_bar)
    next_signal, next_noise = math.sqrt(alpha_bar_next), math.sqrt(1.0 - alpha_bar_next)
    return signal * next_signal + noise * next_noise, signal * next_noise - noise * next_signal


def latent_concat(
    image_latent: Tensor,
    mask_latent: Tensor,
    *,
    prompts: int,
    scale: float = 1.0,
    noise: Tensor | None = None,
    noise_scale: float = 1.0,
    out_dtype: torch.dtype | None = None,
    channels_last: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """`cat[image latent | scale * mask latent + noise_scale * noise]` over channels; the image serves its K prompts.

    Args:
        image_latent: `[B, 4, h, w]` float32, float16 or bfloat16, contiguous; not repeated in memory.
        mask_latent: `[B*K, 4, h, w]`, row `b*K + k`; may differ in dtype.
        prompts: K.
        scale, noise_scale: factors, applied in fp32.
        noise: `[B*K, 4, h, w]` or None.
        out_dtype: dtype of the result; default that of `mask_latent`.
        channels_last: memory format of the result.
        out: buffer to write into, contiguous or channels_last; its dtype and format then hold.

    Returns:
        `[B*K, 8, h, w]`; `out` itself if given. With scale 1 and no noise a bit-exact copy of the inputs.

    Raises:
        ValueError: shape, dtype, device or layout does not fit, or `out` contradicts `out_dtype`/`channels_last`.
    """
    if out is None:
        dtype = out_dtype if out_dtype is not None else mask_latent.dtype
        result: Tensor = torch.ops.digseg.latent_concat(
            image_latent, mask_latent, noise, prompts, scale, noise_scale, dtype, channels_last
        )
        return result
    _check_out(out, out_dtype, channels_last)
    torch.ops.digseg.latent_concat_out(image_latent, mask_latent, noise, prompts, scale, noise_scale, out)
    return out


def sampler_step(
    image_latent: Tensor,
    mask_latent: Tensor,
    velocity: Tensor,
    *,
    prompts: int,
    mask_coefficient: float,
    v_coefficient: float,
    scale: float = 1.0,
    noise: Tensor | None = None,
    noise_scale: float = 1.0,
    out_dtype: torch.dtype | None = None,
    channels_last: bool = False,
    mask_out: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One launch: DDIM step `m = mask_coefficient * mask_latent + v_coefficient * velocity`, then `latent_concat` of m.

    Args: as `latent_concat`, and
        velocity: `[B*K, 4, h, w]`, the network's v-prediction; any of the three dtypes.
        mask_coefficient, v_coefficient: see `ddim_coefficients`.
        mask_out: buffer for m, like `mask_latent` but not the same tensor; with `out`, both or neither.

    Returns:
        (m `[B*K, 4, h, w]` in the dtype of `mask_latent`, step input `[B*K, 8, h, w]`).

    Raises:
        ValueError: as `latent_concat`, or only one of `mask_out` and `out` is given.
    """
    if out is None and mask_out is None:
        dtype = out_dtype if out_dtype is not None else mask_latent.dtype
        following, latents = torch.ops.digseg.sampler_step(
            image_latent, mask_latent, velocity, noise, prompts, mask_coefficient, v_coefficient, scale, noise_scale,
            dtype, channels_last,
        )  # fmt: skip
        return following, latents
    if out is None or mask_out is None or mask_out is mask_latent:
        raise ValueError("sampler_step: `out` and `mask_out` must both be given, `mask_out` not being `mask_latent`")
    _check_out(out, out_dtype, channels_last)
    torch.ops.digseg.sampler_step_out(
        image_latent, mask_latent, velocity, noise, prompts, mask_coefficient, v_coefficient, scale, noise_scale,
        mask_out, out,
    )  # fmt: skip
    return mask_out, out


def _is_channels_last(out: Tensor) -> bool:
    """Memory format of `out`; where both hold (one pixel) it does not matter."""
    return not out.is_contiguous()


def _check_out(out: Tensor, out_dtype: torch.dtype | None, channels_last: bool) -> None:
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


def _check_shapes(image_latent: Tensor, mask_latent: Tensor, likes: dict[str, Tensor | None], prompts: int) -> None:
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
    _check_shapes(image_latent, mask_latent, likes, prompts)
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
    _check_out(out, None, False)
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


def _empty(mask_latent: Tensor, dtype: torch.dtype, channels_last: bool) -> Tensor:
    rows, _, h, w = mask_latent.shape
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    shape = (rows, 2 * CHANNELS, h, w)
    return torch.empty(shape, dtype=dtype, device=mask_latent.device, memory_format=memory_format)


def _run(
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


@torch.library.custom_op("digseg::latent_concat_out", mutates_args=("out",))
def _concat_out(
    image_latent: Tensor,
    mask_latent: Tensor,
    noise: Tensor | None,
    prompts: int,
    scale: float,
    noise_scale: float,
    out: Tensor,
) -> None:
    _run(image_latent, mask_latent, None, noise, prompts, (1.0, 0.0), scale, noise_scale, None, out)


@torch.library.custom_op("digseg::latent_concat", mutates_args=())
def _concat(
    image_latent: Tensor,
    mask_latent: Tensor,
    noise: Tensor | None,
    prompts: int,
    scale: float,
    noise_scale: float,
    out_dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    _check_shapes(image_latent, mask_latent, {"noise": noise}, prompts)
    out = _empty(mask_latent, out_dtype, channels_last)
    _run(image_latent, mask_latent, None, noise, prompts, (1.0, 0.0), scale, noise_scale, None, out)
    return out


@torch.library.custom_op("digseg::sampler_step_out", mutates_args=("mask_out", "out"))
def _step_out(
    image_latent: Tensor,
    mask_latent: Tensor,
    velocity: Tensor,
    noise: Tensor | None,
    prompts: int,
    mask_coefficient: float,
    v_coefficient: float,
    scale: float,
    noise_scale: float,
    mask_out: Tensor,
    out: Tensor,
) -> None:
    coefficients = (mask_coefficient, v_coefficient)
    _run(image_latent, mask_latent, velocity, noise, prompts, coefficients, scale, noise_scale, mask_out, out)


@torch.library.custom_op("digseg::sampler_step", mutates_args=())
def _step(
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
    _check_shapes(image_latent, mask_latent, {"velocity": velocity, "noise": noise}, prompts)
    out = _empty(mask_latent, out_dtype, channels_last)
    following = torch.empty_like(mask_latent)
    coefficients = (mask_coefficient, v_coefficient)
    _run(image_latent, mask_latent, velocity, noise, prompts, coefficients, scale, noise_scale, following, out)
    return following, out


@_concat.register_fake
def _concat_fake(image_latent, mask_latent, noise, prompts, scale, noise_scale, out_dtype, channels_last):  # type: ignore[no-untyped-def]
    _check_shapes(image_latent, mask_latent, {"noise": noise}, prompts)
    return _empty(mask_latent, out_dtype, channels_last)


@_step.register_fake
def _step_fake(image_latent, mask_latent, velocity, noise, prompts, a, b, scale, noise_scale, dtype, channels_last):  # type: ignore[no-untyped-def]
    _check_shapes(image_latent, mask_latent, {"velocity": velocity, "noise": noise}, prompts)
    return torch.empty_like(mask_latent), _empty(mask_latent, dtype, channels_last)


@_concat_out.register_fake
@_step_out.register_fake
def _fill_fake(*_: object) -> None:
    """The buffers carry the result; nothing is made."""


for _registered, _twin in ((_concat, twins.latent_concat), (_step, twins.sampler_step)):
    _backward, _setup = recompute(_twin)
    _registered.register_autograd(_backward, setup_context=_setup)


@register_flop_formula(
    [torch.ops.digseg.latent_concat, torch.ops.digseg.latent_concat_out,
     torch.ops.digseg.sampler_step, torch.ops.digseg.sampler_step_out]
)  # fmt: skip
def _flops(*_: object, **__: object) -> int:
    """No matrix product: counted as zero, like every pointwise op."""
    return 0
