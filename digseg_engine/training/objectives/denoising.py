"""Losses of the reference: stage A (noisy mask latents), stage B (one step, mask space), and few-step distillation.

A: v-prediction with zero terminal SNR, timesteps biased to high noise (DiGSeg's layout, Marigold's recipe). B: the zero
slot at the last timestep, judged by its decoded mask (Garcia et al. 2024, arXiv 2409.11355, fine-tune depth this way).
Every loss is a pure function of (module, number of the micro-batch).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel

from digseg_engine.data.batch import Batches
from digseg_engine.data.wordings import encode_text
from digseg_engine.model.autoencoder import Autoencoder, decode_mask, encode_mask
from digseg_engine.model.devices import device_of
from digseg_engine.model.reference import Reference
from digseg_engine.model.sampler import Schedule, sample, trailing_timesteps
from digseg_engine.text import PromptTokenizer
from digseg_engine.training.loop import StageConfig
from digseg_engine.training.objectives.losses import latent_error, mask_loss

Parts = Mapping[str, float]


@dataclass(frozen=True)
class Pairs:
    """B pictures with one prompt each, three quarters of the prompts present."""

    z: Tensor  # image latents [B, 4, h, w]
    masks: Tensor  # [B, H, W] in 0..1
    clean: Tensor  # mask latents [B, 4, h, w]
    text: Tensor  # [B, L, D]
    token_mask: Tensor  # [B, L]
    valid: Tensor | None = None  # [B, 1, H, W] in 0..1; None: all pixels count


class PairSource:
    """Draws `Pairs`: the frozen autoencoder and text encoder around a source of batches."""

    def __init__(
        self, batches: Batches, vae: Autoencoder, text: CLIPTextModel, tokenizer: PromptTokenizer, config: StageConfig
    ) -> None:
        self.batches, self.vae, self.text, self.tokenizer, self.config = batches, vae, text, tokenizer, config

    @torch.no_grad()
    def draw(self, step: int, random: torch.Generator, device: torch.device) -> Pairs:
        batch = self.batches.batch(step, self.config.batch, self.config.batch)
        seen = (batch.masks.sum((-2, -1)) > 0).float() * 11 + 1
        choice = torch.multinomial(seen, 1, generator=random)[:, 0]  # [B]
        masks, valid = batch.of(torch.arange(len(choice)), choice)
        text, token_mask = encode_text(self.text, self.tokenizer, [batch.queries[int(i)].text for i in choice])
        masks, valid = masks.to(device), None if valid is None else valid.to(device)
        return Pairs(batch.latents.to(device), masks, encode_mask(self.vae, masks), text, token_mask, valid)


class DenoisingLoss:
    """Stage A: v-prediction on mask latents; three samples in ten see the zero slot at the last timestep."""

    def __init__(self, source: PairSource, schedule: Schedule) -> None:
        self.source, self.schedule = source, schedule

    def __call__(self, reference: nn.Module, step: int) -> tuple[Tensor, Parts]:
        random, device = torch.Generator().manual_seed(step), device_of(reference)
        pairs = self.source.draw(step, random, device)
        last = len(self.schedule) - 1
        t = (len(self.schedule) * torch.rand(len(pairs.z), generator=random) ** 0.5).long().clamp(max=last)
        zero = torch.rand(len(t), generator=random) < 0.3
        t = torch.where(zero, last, t).to(device)
        noise = torch.randn(pairs.clean.shape, generator=random)
        noise = torch.where(zero[:, None, None, None], 0.0, noise).to(device)
        noisy = self.schedule.add_noise(pairs.clean, noise, t)
        noisy = torch.where(zero[:, None, None, None].to(device), 0.0, noisy)
        v = reference(torch.cat([pairs.z, noisy], 1), t, pairs.text, pairs.token_mask)
        clean = self.schedule.clean(noisy, v, t)
        v_error = latent_error((v - self.schedule.velocity(pairs.clean, noise, t)).square(), pairs.valid)
        one_step = latent_error((clean - pairs.clean).square(), pairs.valid)
        loss = torch.where(zero.to(device), one_step, v_error).mean()
        return loss, {"v_mse": float(loss.detach())}


class OneStepLoss:
    """Stage B: the decoded one-step mask against the truth, BCE + Dice, and a little of the latent error.

    The mask slot is zero; `noise` fills it with noise instead (an ablation).
    """

    def __init__(self, source: PairSource, schedule: Schedule, latent_weight: float = 0.5, noise: bool = False) -> None:
        self.source, self.schedule, self.latent_weight, self.noise = source, schedule, latent_weight, noise

    def __call__(self, reference: nn.Module, step: int) -> tuple[Tensor, Parts]:
        random, device = torch.Generator().manual_seed(step), device_of(reference)
        pairs = self.source.draw(step, random, device)
        shape = pairs.clean.shape
        slot = torch.randn(shape, generator=random).to(device) if self.noise else torch.zeros(shape, device=device)
        t = torch.full((len(slot),), len(self.schedule) - 1, device=device)
        v = reference(torch.cat([pairs.z, slot], 1), t, pairs.text, pairs.token_mask)
        clean = self.schedule.clean(slot, v, t)
        logits = decode_mask(self.source.vae, clean)
        bce, dice = mask_loss(logits[:, None], pairs.masks[:, None], pairs.valid)
        close = latent_error((clean - pairs.clean).square(), pairs.valid).mean()
        loss = 2 * bce + dice + self.latent_weight * close
        return loss, {"bce": float(bce.detach()), "dice": float(dice.detach())}


class FewStepLoss:
    """A copy of the reference learns to reach the teacher's N-step mask from any point of a short sampling grid."""

    def __init__(
        self, source: PairSource, teacher: Reference, schedule: Schedule, teacher_steps: int, grid: tuple[int, ...]
    ) -> None:
        self.source, self.teacher, self.schedule = source, teacher, schedule
        self.teacher_steps, self.grid = teacher_steps, grid

    def __call__(self, student: nn.Module, step: int) -> tuple[Tensor, Parts]:
        random, device = torch.Generator().manual_seed(step), device_of(student)
        pairs = self.source.draw(step, random, device)
        noise = torch.randn(pairs.clean.shape, generator=random).to(device)
        steps = self.grid[int(torch.randint(0, len(self.grid), (), generator=random))]
        at = int(torch.randint(0, steps, (), generator=random))
        t = torch.full((len(noise),), trailing_timesteps(steps, len(self.schedule))[at], device=device)
        with torch.no_grad():
            target = sample(
                lambda both, when: self.teacher(both, when, pairs.text, pairs.token_mask),
                pairs.z, self.schedule, self.teacher_steps, noise,
            )  # fmt: skip
            noisy = torch.zeros_like(noise) if steps == 1 else self.schedule.add_noise(target, noise, t)
        v = student(torch.cat([pairs.z, noisy], 1), t, pairs.text, pairs.token_mask)
        loss = F.mse_loss(self.schedule.clean(noisy, v, t), target)
        return loss, {"latent_mse": float(loss.detach())}
