"""The sampler: deterministic DDIM on v-predictions with zero terminal SNR and trailing timesteps.

Lin et al. 2023 ("Common Diffusion Noise Schedules and Sample Steps are Flawed"): betas rescaled so that the last step is
pure noise, and timesteps counted from the end, so that one step starts at t = T-1. With "leading" spacing one step would
land on t = 1 and tell the network that pure noise is almost clean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from digseg_engine.errors import UsageError
from digseg_triton import twins
from digseg_triton.latent_concat import ddim_coefficients


def plain_concat(z: Tensor, m: Tensor, *, prompts: int) -> Tensor:
    """[image latent | mask latent] for every prompt: z [B, 4, h, w], m [B*K, 4, h, w] -> [B*K, 8, h, w]."""
    return twins.latent_concat(z, m, None, prompts, 1.0, 1.0, m.dtype, False)


def plain_step(
    z: Tensor, m: Tensor, v: Tensor, *, prompts: int, mask_coefficient: float, v_coefficient: float
) -> tuple[Tensor, Tensor]:
    """One DDIM step and the next input: (m_next [B*K, 4, h, w], [B*K, 8, h, w])."""
    return twins.sampler_step(z, m, v, None, prompts, mask_coefficient, v_coefficient, 1.0, 1.0, m.dtype, False)


Denoise = Callable[[Tensor, Tensor], Tensor]  # ([image latent | mask latent] [B*K, 8, h, w], timestep [B*K]) -> v
BETA_START, BETA_END = 0.00085, 0.012  # Stable Diffusion's
PLAIN: dict[str, Callable[..., Any]] = {"latent_concat": plain_concat, "sampler_step": plain_step}


@dataclass(frozen=True)
class Schedule:
    """alpha_bar per timestep, float64 [T], from (almost) 1 down to 0 (exactly 0 with zero terminal SNR)."""

    alpha_bar: Tensor

    @classmethod
    def scaled_linear(cls, steps: int = 1000, start: float = BETA_START, end: float = BETA_END) -> Schedule:
        """Stable Diffusion's own schedule: betas linear in their square root; the last alpha_bar is 0.0047, not 0."""
        betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
        return cls(torch.cumprod(1 - betas, 0))

    @classmethod
    def linear(cls, steps: int = 1000, start: float = 0.0001, end: float = 0.02) -> Schedule:
        """Betas linear themselves (Ho et al. 2020), as some fine-tuned directories have them."""
        return cls(torch.cumprod(1 - torch.linspace(start, end, steps, dtype=torch.float64), 0))

    @classmethod
    def zero_terminal_snr(cls, steps: int = 1000, start: float = BETA_START, end: float = BETA_END) -> Schedule:
        """Stable Diffusion's scaled-linear betas with a last alpha_bar of 0."""
        return cls.scaled_linear(steps, start, end).to_zero_terminal_snr()

    def to_zero_terminal_snr(self) -> Schedule:
        """The same schedule shifted and scaled in sqrt(alpha_bar) so that the last one is 0 (Lin et al. 2023)."""
        root = self.alpha_bar.sqrt()
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        return Schedule(root**2)

    def __len__(self) -> int:
        return len(self.alpha_bar)

    @cached_property
    def values(self) -> list[float]:
        """alpha_bar as numbers: the sampler's weights need no tensor, on no device."""
        return [float(value) for value in self.alpha_bar.tolist()]

    def coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(alpha_bar), sqrt(1 - alpha_bar) at t [B], shaped [B, 1, 1, 1] in the dtype of `like`."""
        at = self.alpha_bar.to(t.device)[t].view(-1, 1, 1, 1)
        return at.sqrt().to(like.dtype), (1 - at).sqrt().to(like.dtype)

    def add_noise(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        signal, sigma = self.coefficients(t, clean)
        return signal * clean + sigma * noise

    def velocity(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The v target of Salimans & Ho 2022: sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) clean."""
        signal, sigma = self.coefficients(t, clean)
        return signal * noise - sigma * clean

    def velocity_of_noise(self, noisy: Tensor, epsilon: Tensor, t: Tensor) -> Tensor:
        """The v that a noise prediction stands for: (epsilon - sqrt(1 - alpha_bar) noisy) / sqrt(alpha_bar)."""
        signal, sigma = self.coefficients(t, noisy)
        return (epsilon - sigma * noisy) / signal

    def clean(self, noisy: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """The mask latent that a prediction v stands for."""
        signal, sigma = self.coefficients(t, noisy)
        return signal * noisy - sigma * v


def trailing_timesteps(steps: int, train_steps: int = 1000) -> list[int]:
    """`steps` timesteps counted down from train_steps - 1. Raises UsageError outside 1..train_steps."""
    if not 1 <= steps <= train_steps:
        raise UsageError(f"sampling steps must be 1 to {train_steps}, got {steps}")
    return [round(train_steps - i * train_steps / steps) - 1 for i in range(steps)]


def ddim_weights(schedule: Schedule, t: int, t_next: int | None) -> tuple[float, float]:
    """(a, b) with m_next = a * m + b * v for one deterministic DDIM step from t to t_next (None: to the clean mask)."""
    now = schedule.values[t]
    return ddim_coefficients(now, 1.0 if t_next is None else schedule.values[t_next])


def sample(
    denoise: Denoise, z: Tensor, schedule: Schedule, steps: int, noise: Tensor | None = None, prompts: int = 1,
    slots: dict[str, Callable[..., Any]] = PLAIN,
) -> Tensor:  # fmt: skip
    """Clean mask latents [B*K, 4, h, w] (row b*K + k) from image latents z [B, 4, h, w] and K prompts.

    noise [B*K, 4, h, w] starts the few-step mode; None starts from zeros (the deterministic one-step mode). `slots`
    holds the two functions that build the U-Net's input; the image latent is never repeated for its prompts in memory
    when they are the fused kernels.
    """
    m = z.new_zeros(len(z) * prompts, *z.shape[1:]) if noise is None else noise
    return denoise_from(denoise, z, m, schedule, trailing_timesteps(steps, len(schedule)), prompts, slots)


def denoise_from(
    denoise: Denoise, z: Tensor, m: Tensor, schedule: Schedule, times: list[int], prompts: int = 1,
    slots: dict[str, Callable[..., Any]] = PLAIN,
) -> Tensor:  # fmt: skip
    """Clean mask latents from m [B*K, 4, h, w] at times[0], over the falling timesteps `times`; else as `sample`."""
    z, m = z.contiguous(), m.contiguous()  # the kernels never copy in silence
    latents = slots["latent_concat"](z, m, prompts=prompts)  # [B*K, 8, h, w]
    for t, t_next in zip(times, [*times[1:], None]):
        v = denoise(latents, torch.full((len(m),), t, device=z.device))
        a, b = ddim_weights(schedule, t, t_next)
        if t_next is None:
            return a * m + b * v
        m, latents = slots["sampler_step"](z, m, v.contiguous(), prompts=prompts, mask_coefficient=a, v_coefficient=b)
    return m
