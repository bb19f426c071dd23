"""Few-step distillation: the reference learns to reach in a few steps what it reaches in many."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from digseg_engine.model.devices import device_of
from digseg_engine.model.reference import Reference
from digseg_engine.model.sampler import Schedule, sample, trailing_timesteps
from digseg_engine.training.loop import Parts
from digseg_engine.training.objectives.noise import generator
from digseg_engine.training.objectives.pairs import PairSource


class FewStepLoss:
    """A copy of the reference learns to reach the teacher's N-step mask from any point of a short sampling grid."""

    def __init__(
        self, source: PairSource, teacher: Reference, schedule: Schedule, teacher_steps: int, grid: tuple[int, ...]
    ) -> None:
        self.source, self.teacher, self.schedule = source, teacher, schedule
        self.teacher_steps, self.grid = teacher_steps, grid

    def __call__(self, student: nn.Module, step: int) -> tuple[Tensor, Parts]:
        random, device = generator(self.source.batches.seed, step), device_of(student)
        pairs = self.source.draw(step, random, device)
        noise = torch.randn(pairs.clean.shape, generator=random).to(device)
        numbers = np.random.default_rng([self.source.batches.seed, step])
        steps = self.grid[int(numbers.integers(len(self.grid)))]
        at = int(numbers.integers(steps))
        t = torch.full((len(noise),), trailing_timesteps(steps, len(self.schedule))[at], device=device)
        with torch.no_grad():
            target = sample(
                lambda latents, when: self.teacher(latents, when, pairs.text, pairs.token_mask),
                pairs.z, self.schedule, self.teacher_steps, noise,
            )  # fmt: skip
            noisy = torch.zeros_like(noise) if steps == 1 else self.schedule.add_noise(target, noise, t)
        v = student(torch.cat([pairs.z, noisy], 1), t, pairs.text, pairs.token_mask)
        loss = F.mse_loss(self.schedule.clean(noisy, v, t), target)
        return loss, {"latent_mse": loss.detach()}
