"""The sampler's step input: image latent next to mask latent, optionally after a DDIM step, in one launch.

DDIM (Song et al. 2021, eq. 12 with eta = 0) under v-prediction (Salimans & Ho 2022, appendix D) is a linear map of
mask latent and network output, so it needs two coefficients and never divides: safe at zero terminal SNR.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import latent_concat_ops  # noqa: F401  registers torch.ops.digseg.latent_concat and the others
from .checks import require
from .latent_concat_launch import check_out


def ddim_coefficients(alpha_bar: float, alpha_bar_next: float) -> tuple[float, float]:
    """(mask_coefficient, v_coefficient) of a deterministic step from signal power `alpha_bar` to `alpha_bar_next`.

    Both in 0..1; 0 is pure noise (zero terminal SNR), 1 the clean latent. Raises ValueError outside.
    """
    for name, value in {"alpha_bar": alpha_bar, "alpha_bar_next": alpha_bar_next}.items():
        require(0.0 <= value <= 1.0, "ddim_coefficients", f"`{name}`", "in 0..1", value, "pass alphas_cumprod")
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
    check_out(out, out_dtype, channels_last)
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
    check_out(out, out_dtype, channels_last)
    torch.ops.digseg.sampler_step_out(
        image_latent, mask_latent, velocity, noise, prompts, mask_coefficient, v_coefficient, scale, noise_scale,
        mask_out, out,
    )  # fmt: skip
    return mask_out, out
