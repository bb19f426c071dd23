"""The five stages of training a DiGSeg from nothing, each as a loss that is a pure function of (module, step).

1 autoencoder: pictures and rendered masks. 2 text: CLIP-aligned in the small, region features against phrases, then
frozen. 3 reference: v-prediction on mask latents. 4 student: distilled from the reference and the ground truth.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel

from digseg_engine.model.autoencoder import Autoencoder, decode_mask, draw_mask, encode_mask, raw_latent
from digseg_engine.model.reference import Reference
from digseg_engine.model.sampler import Schedule, sample
from digseg_engine.model.student import Student
from digseg_engine.text import PromptTokenizer, pad_tokens
from digseg_engine.training.loop import StageConfig
from digseg_engine.training.losses import mask_loss, shrink
from digseg_engine.training.pool import TRAIN_NAMES, Batch, SceneBatches
from digseg_engine.training.scenes import phrase

Parts = Mapping[str, float]


def encode_text(text_encoder: CLIPTextModel, tokenizer: PromptTokenizer, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Prompts -> text features [K, L, D] and their mask [K, L]; the empty prompt is allowed here."""
    ids, mask = pad_tokens([tokenizer.ids(prompt) for prompt in prompts])
    device = next(text_encoder.parameters()).device
    return text_encoder(torch.from_numpy(ids).to(device)).last_hidden_state, torch.from_numpy(mask).to(device)


@torch.no_grad()
def typical_tokens(text_encoder: CLIPTextModel, tokenizer: PromptTokenizer) -> Tensor:
    """Features of all tokens but the start token in four phrasings of every training name, [N, D]."""
    rng = np.random.default_rng(0)
    phrases = [phrase(rng, name).text for name in TRAIN_NAMES for _ in range(4)]
    text, mask = encode_text(text_encoder, tokenizer, phrases)
    return torch.cat([row[1 : int(live.sum())] for row, live in zip(text, mask)])


def unwrap(module: Any) -> Any:
    """The plain module behind DistributedDataParallel or torch.compile."""
    module = getattr(module, "_orig_mod", module)
    return getattr(module, "module", module)


class AutoencoderLoss:
    """L1 + L2 reconstruction of crops and of masks drawn as -1/+1 pictures, with the same again on colour.

    The colour term (what is left of the error without its grey part) keeps the few latent channels from spending
    themselves on brightness alone. An autoencoder is local, so crops of `config.size` pixels teach as much as pictures.
    """

    def __init__(self, batches: SceneBatches, config: StageConfig) -> None:
        self.batches, self.config = batches, config

    def __call__(self, vae: nn.Module, step: int) -> tuple[Tensor, Parts]:
        batch = self.batches.batch(step, self.config.batch, 4)
        masks = self._crop(batch.masks.flatten(0, 1), step)
        busy = masks[(masks.mean((1, 2)) - 0.5).abs() < 0.45][: self.config.batch // 5]
        drawn = draw_mask(busy)
        x = torch.cat([self._crop(batch.images, step)[: self.config.batch - len(busy)], drawn])
        model = unwrap(vae)
        error = model.decode(raw_latent(model, x)).sample - x
        colour = error - error.mean(1, keepdim=True)
        losses = [e.abs().mean() + e.square().mean() for e in (error, colour)]
        parts = {"recon": float(losses[0].detach()), "colour": float(losses[1].detach())}
        return losses[0] + 2 * losses[1], parts

    def _crop(self, x: Tensor, step: int) -> Tensor:
        """The same random window of `config.size` pixels for the whole batch: [..., H, W] -> [..., size, size]."""
        size = self.config.size
        random = torch.Generator().manual_seed(step)
        top, left = (int(torch.randint(0, n - size + 1, (), generator=random)) for n in x.shape[-2:])
        return x[..., top : top + size, left : left + size]


class RegionTower(nn.Module):
    """Training-only picture tower: a small convolutional network whose features are pooled over a region."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, (low, high) in enumerate(((3, width), (width, 2 * width), (2 * width, 4 * width))):
            layers += [nn.Conv2d(low, high, 3, stride=2 if i else 1, padding=1), nn.GroupNorm(8, high), nn.SiLU()]
            layers += [nn.Conv2d(high, high, 3, padding=1), nn.GroupNorm(8, high), nn.SiLU()]
        self.layers = nn.Sequential(*layers)
        self.out = nn.Sequential(nn.Linear(8 * width, 4 * width), nn.SiLU(), nn.Linear(4 * width, dim))

    def forward(self, images: Tensor, masks: Tensor) -> Tensor:
        """images [R, 3, S, S], masks [R, S, S] -> region features [R, dim]: mean and maximum over the region."""
        x = self.layers(images * masks[:, None])
        inside = shrink(masks[:, None], x.shape[-2:])  # [R, 1, s, s]
        mean = (x * inside).sum((-2, -1)) / inside.sum((-2, -1)).clamp(min=1e-3)
        return self.out(torch.cat([mean, x.amax((-2, -1))], dim=1))


class TextAlignment(nn.Module):
    """Text encoder, projection and region tower, trained together; only the text encoder is kept."""

    def __init__(self, text_encoder: CLIPTextModel, dim: int = 128) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.tower = RegionTower(24, dim)
        self.project = nn.Linear(text_encoder.config.hidden_size, dim, bias=False)
        self.temperature = nn.Parameter(torch.tensor(2.3))
        self.bias = nn.Parameter(torch.tensor(-4.0))

    def forward(self, images: Tensor, masks: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """R regions and K prompts -> match logits [R, K]."""
        text = self.text_encoder(ids).last_hidden_state
        end = mask.sum(1) - 1
        text = F.normalize(self.project(text[torch.arange(len(text)), end]), dim=-1)
        regions = F.normalize(self.tower(images, masks), dim=-1)
        return regions @ text.T * self.temperature.exp() + self.bias


class AlignmentLoss:
    """Sigmoid contrastive loss (SigLIP): a region matches every phrase whose mask covers it."""

    def __init__(self, batches: SceneBatches, tokenizer: PromptTokenizer, config: StageConfig) -> None:
        self.batches, self.tokenizer, self.config = batches, tokenizer, config

    def __call__(self, model: nn.Module, step: int) -> tuple[Tensor, Parts]:
        batch = self.batches.batch(step, self.config.batch, self.config.prompts)
        present = (batch.masks.sum((-2, -1)) > 20).nonzero()[: 2 * self.config.batch]  # [R, 2] (picture, prompt)
        regions = batch.masks[present[:, 0], present[:, 1]]  # [R, S, S]
        everyone = batch.masks[present[:, 0]]  # [R, K, S, S]: which prompts cover this region
        covered = (everyone * regions[:, None]).sum((-2, -1)) / regions.sum((-2, -1))[:, None] > 0.95
        ids, mask = pad_tokens([self.tokenizer.ids(q.text) for q in batch.queries])
        logits = model(batch.images[present[:, 0]], regions, torch.from_numpy(ids), torch.from_numpy(mask))
        loss = F.binary_cross_entropy_with_logits(logits, covered.float(), reduction="none").sum(1).mean()
        accuracy = ((logits > 0) == covered).float().mean()
        return loss, {"align": float(loss.detach()), "error": float(1 - accuracy)}


class DenoisingLoss:
    """v-prediction on mask latents at high-noise-biased timesteps; the slot is sometimes the one-step zero slot."""

    def __init__(
        self, batches: SceneBatches, vae: Autoencoder, text: CLIPTextModel, tokenizer: PromptTokenizer,
        schedule: Schedule, config: StageConfig,
    ) -> None:  # fmt: skip
        self.batches, self.vae, self.text, self.tokenizer = batches, vae, text, tokenizer
        self.schedule, self.config = schedule, config

    def __call__(self, reference: nn.Module, step: int) -> tuple[Tensor, Parts]:
        batch = self.batches.batch(step, self.config.batch, self.config.batch)
        random = torch.Generator().manual_seed(step)
        z, clean, text, mask = self._pairs(batch, random)
        noise = torch.randn(clean.shape, generator=random)
        t = (1000 * torch.rand(len(z), generator=random) ** 0.5).long().clamp(max=999)
        zero = torch.rand(len(z), generator=random) < 0.3
        t = torch.where(zero, 999, t)
        noise = torch.where(zero[:, None, None, None], 0.0, noise)
        noisy = self.schedule.add_noise(clean, noise, t)
        v = reference(torch.cat([z, noisy], 1), t, text, mask)
        loss = F.mse_loss(v, self.schedule.velocity(clean, noise, t))
        return loss, {"v_mse": float(loss.detach())}

    @torch.no_grad()
    def _pairs(self, batch: Batch, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One prompt per picture, three quarters of them present: z, mask latent, text, token mask."""
        seen = (batch.masks.sum((-2, -1)) > 0).float() * 11 + 1
        choice = torch.multinomial(seen, 1, generator=random)[:, 0]  # [B]
        masks = batch.masks[torch.arange(len(choice)), choice]
        text, mask = encode_text(self.text, self.tokenizer, [batch.queries[int(i)].text for i in choice])
        return batch.latents, encode_mask(self.vae, masks), text, mask


class DistillationLoss:
    """Student logits against ground truth, and on every eighth step also against the reference's N-step masks."""

    def __init__(
        self, batches: SceneBatches, vae: Autoencoder, text: CLIPTextModel, tokenizer: PromptTokenizer,
        reference: Reference, schedule: Schedule, config: StageConfig, teacher_steps: int = 4, every: int = 8,
    ) -> None:  # fmt: skip
        self.batches, self.vae, self.text, self.tokenizer = batches, vae, text, tokenizer
        self.reference, self.schedule, self.config = reference, schedule, config
        self.teacher_steps, self.every = teacher_steps, every

    def __call__(self, student: nn.Module, step: int) -> tuple[Tensor, Parts]:
        batch = self.batches.batch(step, self.config.batch, self.config.prompts)
        with torch.no_grad():
            text, mask = encode_text(self.text, self.tokenizer, [q.text for q in batch.queries])
        bare: Student = unwrap(student)
        logits = student(batch.images, batch.latents, bare.fold_text(text, mask))
        bce, dice = mask_loss(logits, shrink(batch.masks, logits.shape[-2:]))
        loss, parts = 2 * bce + dice, {"bce": float(bce.detach()), "dice": float(dice.detach())}
        if step % self.every == 0:
            imitation = self._imitation(batch, logits, text, mask, step)
            loss, parts = loss + 0.5 * imitation, {**parts}
        return loss, parts

    def _imitation(self, batch: Batch, logits: Tensor, text: Tensor, mask: Tensor, step: int) -> Tensor:
        """BCE to the reference's soft masks on 16 (picture, prompt) pairs, weighted by how right the reference is."""
        random = torch.Generator().manual_seed(step)
        seen = (batch.masks.flatten(0, 1).sum((-2, -1)) > 0).float() * 4 + 1
        pair = torch.multinomial(seen, 16, generator=random)
        b, k = pair // len(batch.queries), pair % len(batch.queries)
        with torch.no_grad():
            z = batch.latents[b]
            noise = torch.randn(z.shape, generator=random)
            m = sample(
                lambda both, t: self.reference(both, t, text[k], mask[k]), z, self.schedule, self.teacher_steps, noise
            )
            soft = shrink(decode_mask(self.vae, m).sigmoid()[:, None], logits.shape[-2:])[:, 0]
            truth = shrink(batch.masks[b, k][:, None], logits.shape[-2:])[:, 0]
            trust = 2 * (soft * truth).sum((-2, -1)) / (soft.sum((-2, -1)) + truth.sum((-2, -1)) + 1)  # soft Dice
        error = F.binary_cross_entropy_with_logits(logits[b, k], soft, reduction="none").mean((-2, -1))
        return (error * trust**2).mean()
