"""The registered ops behind `latent_concat.py`: schema, fake, backward; each with a variant that fills buffers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import latent_concat_launch as launcher
from . import twins
from .recompute import recompute


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
    launcher.run(image_latent, mask_latent, None, noise, prompts, (1.0, 0.0), scale, noise_scale, None, out)


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
    launcher.check_shapes(image_latent, mask_latent, {"noise": noise}, prompts)
    out = launcher.empty(mask_latent, out_dtype, channels_last)
    launcher.run(image_latent, mask_latent, None, noise, prompts, (1.0, 0.0), scale, noise_scale, None, out)
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
    launcher.run(image_latent, mask_latent, velocity, noise, prompts, coefficients, scale, noise_scale, mask_out, out)


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
    launcher.check_shapes(image_latent, mask_latent, {"velocity": velocity, "noise": noise}, prompts)
    out = launcher.empty(mask_latent, out_dtype, channels_last)
    following = torch.empty_like(mask_latent)
    coefficients = (mask_coefficient, v_coefficient)
    launcher.run(image_latent, mask_latent, velocity, noise, prompts, coefficients, scale, noise_scale, following, out)
    return following, out


@_concat.register_fake
def _concat_fake(image_latent, mask_latent, noise, prompts, scale, noise_scale, out_dtype, channels_last):  # type: ignore[no-untyped-def]
    launcher.check_shapes(image_latent, mask_latent, {"noise": noise}, prompts)
    return launcher.empty(mask_latent, out_dtype, channels_last)


@_step.register_fake
def _step_fake(image_latent, mask_latent, velocity, noise, prompts, a, b, scale, noise_scale, dtype, channels_last):  # type: ignore[no-untyped-def]
    launcher.check_shapes(image_latent, mask_latent, {"velocity": velocity, "noise": noise}, prompts)
    return torch.empty_like(mask_latent), launcher.empty(mask_latent, dtype, channels_last)


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
