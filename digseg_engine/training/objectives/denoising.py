"""Stage A of the reference: v-prediction on noisy mask latents.

Zero terminal SNR, timesteps biased to high noise (DiGSeg's layout, Marigold's recipe). A pure function of (module, number
of the micro-batch), as every loss here.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from digseg_engine.errors import UsageError
from digseg_engine.model.devices import device_of
from digseg_engine.model.sampler import Schedule
from digseg_engine.training.loop import Parts, unwrap
from digseg_engine.training.objectives.losses import latent_error
from digseg_engine.training.objectives.noise import NoiseKind, draw_noise, generator
from digseg_engine.training.objectives.pairs import PairSource

ZERO_SHARE = (
    0.3  # of the samples see the zero slot, which the one-step answer starts from; the rest keep the sampler alive
)
LATE = 0.5  # power of a uniform number that draws t: below 1 noisy timesteps come more often, where the mask is decided
MIN_SNR = 5.0  # gamma of Hang et al. 2023 (arXiv 2303.09556): above it a timestep has too little noise to teach much


def noise_weights(schedule: Schedule, t: Tensor) -> Tensor:
    """Weights [B] that turn errors of v into those of the noise, min-SNR weighted: for networks that predict noise.

    Their v is (noise - ...) / sqrt(alpha_bar), so an equal error of the noise weighs 215 times as much at the last step of
    Stable Diffusion's schedule as at the first, and those few timesteps would rule the loss.
    """
    alpha_bar = schedule.alpha_bar.to(t.device)[t]
    snr = alpha_bar / (1 - alpha_bar)
    return (alpha_bar * snr.clamp(max=MIN_SNR) / snr).float()


def check_late(power: float) -> None:
    """Raises UsageError for a power that draws no timesteps."""
    if not (power > 0 and math.isfinite(power)):
        raise UsageError(
            f"late must be a positive power (1: all timesteps alike, {LATE}: noisy ones more often), got {power}"
        )


class DenoisingLoss:
    """Stage A: v-prediction on mask latents; some samples see the zero slot at the last timestep.

    noise: what the sampler's start is made of, see `objectives.noise`. A `Reference` whose network predicts noise is weighted
    by `noise_weights`. late: power of the uniform number that draws t; 1: all timesteps alike.
    """

    def __init__(
        self, source: PairSource, schedule: Schedule, noise: NoiseKind = "gaussian", late: float = LATE
    ) -> None:
        self.source, self.schedule, self.noise, self.late = source, schedule, noise, late

    def __call__(self, reference: nn.Module, step: int) -> tuple[Tensor, Parts]:
        random, device = generator(self.source.batches.seed, step), device_of(reference)
        pairs = self.source.draw(step, random, device)
        last = len(self.schedule) - 1
        t = (len(self.schedule) * torch.rand(len(pairs.z), generator=random) ** self.late).long().clamp(max=last)
        zero = torch.rand(len(t), generator=random) < ZERO_SHARE
        t = torch.where(zero, last, t)
        noise = draw_noise(self.noise, pairs.clean.shape, random, t / last)
        t = t.to(device)
        noise = torch.where(zero[:, None, None, None], 0.0, noise).to(device)
        noisy = self.schedule.add_noise(pairs.clean, noise, t)
        noisy = torch.where(zero[:, None, None, None].to(device), 0.0, noisy)
        v = reference(torch.cat([pairs.z, noisy], 1), t, *pairs.conditioning)
        clean = self.schedule.clean(noisy, v, t)
        v_error = latent_error((v - self.schedule.velocity(pairs.clean, noise, t)).square(), pairs.valid)
        one_step = latent_error((clean - pairs.clean).square(), pairs.valid)
        errors = torch.where(zero.to(device), one_step, v_error)  # [B]
        if getattr(unwrap(reference), "noise_schedule", None) is not None:
            errors = errors * noise_weights(self.schedule, t)
        loss = errors.mean()
        return loss, {"v_mse": loss.detach()}
