"""Losses of the autoencoder, the text encoder and the student, each a pure function of (module, number of the batch).

The trunk's own pretraining is in `backbone.py`, the reference's losses are in `denoising.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel

from digseg_engine.data.batch import Batch, Batches
from digseg_engine.data.wordings import encode_text
from digseg_engine.model.autoencoder import Autoencoder, decode_mask, draw_mask, raw_latent
from digseg_engine.model.devices import device_of
from digseg_engine.model.reference import Reference
from digseg_engine.model.sampler import Schedule, sample
from digseg_engine.model.student import Student
from digseg_engine.text import PromptTokenizer, pad_tokens
from digseg_engine.training.loop import StageConfig, unwrap
from digseg_engine.training.objectives.dense import Tutored, dense_loss, pool_regions
from digseg_engine.training.objectives.losses import mask_loss, ranking_loss, shrink, shrink_labels
from digseg_engine.worlds.pool import SceneBatches

Parts = Mapping[str, float]
CROP = 32


class AutoencoderLoss:
    """L1 + L2 reconstruction of crops and of masks drawn as -1/+1 pictures, with the same again on colour.

    The colour term (what is left of the error without its grey part) keeps the few latent channels from spending
    themselves on brightness alone. An autoencoder is local, so crops of 32 pixels teach as much as pictures.
    """

    def __init__(self, batches: SceneBatches, config: StageConfig) -> None:
        self.batches, self.config = batches, config

    def __call__(self, vae: nn.Module, step: int) -> tuple[Tensor, Parts]:
        batch = self.batches.batch(step, self.config.batch, 4).to(device_of(vae))
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
        """The same random window of `CROP` pixels for the whole batch: [..., H, W] -> [..., size, size]."""
        size = CROP
        random = torch.Generator().manual_seed(step)
        top, left = (int(torch.randint(0, n - size + 1, (), generator=random)) for n in x.shape[-2:])
        return x[..., top : top + size, left : left + size]


class TextAlignment(nn.Module):
    """Text encoder and the projections of both sides, trained together; only the text encoder is kept."""

    def __init__(self, text_encoder: CLIPTextModel, region_width: int, dim: int = 128) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.tower = nn.Sequential(nn.Linear(region_width, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim))
        self.project = nn.Linear(text_encoder.config.hidden_size, dim, bias=False)
        self.temperature = nn.Parameter(torch.tensor(2.3))
        self.bias = nn.Parameter(torch.tensor(-4.0))

    def forward(self, regions: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """R region features and K prompts -> match logits [R, K]."""
        text = self.text_encoder(ids).last_hidden_state
        end = mask.sum(1) - 1
        text = F.normalize(self.project(text[torch.arange(len(text)), end]), dim=-1)
        return F.normalize(self.tower(regions), dim=-1) @ text.T * self.temperature.exp() + self.bias


class AlignmentLoss:
    """Sigmoid contrastive loss (SigLIP): a region matches every phrase whose mask covers it.

    Regions are described by the frozen trunk's features, averaged under their masks.
    """

    def __init__(
        self, batches: SceneBatches, student: Student, tokenizer: PromptTokenizer, config: StageConfig
    ) -> None:
        self.batches, self.student, self.tokenizer, self.config = batches, student, tokenizer, config

    def __call__(self, model: nn.Module, step: int) -> tuple[Tensor, Parts]:
        batch = self.batches.batch(step, self.config.batch, self.config.prompts).to(device_of(model))
        picture, prompt = (batch.masks.sum((-2, -1)) > 20).nonzero().T  # [R] each
        regions = batch.masks[picture, prompt]  # [R, S, S]
        everyone = batch.masks[picture]  # [R, K, S, S]: which prompts cover this region
        covered = torch.einsum("rkhw,rhw->rk", everyone, regions) / regions.sum((-2, -1))[:, None] > 0.95
        with torch.no_grad():
            features, _ = self.student.describe(batch.images, batch.latents)
            described = pool_regions([x[picture] for x in features], regions)
        ids, mask = pad_tokens([self.tokenizer.ids(q.text) for q in batch.queries])
        device = device_of(model)
        logits = model(described, torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device))
        error = F.binary_cross_entropy_with_logits(logits, covered.float(), reduction="none")
        if batch.valid is not None:  # what nobody knows of a region teaches nothing
            untold = torch.einsum("rkhw,rhw->rk", 1 - batch.valid[picture], regions) > 0
            error = error.masked_fill(untold, 0.0)
        loss = error.sum(1).mean()
        missed = (logits[covered] <= 0).float().mean()
        return loss, {"align": float(loss.detach()), "missed": float(missed)}


class DistillationLoss:
    """Student logits against ground truth, and on every 16th step also against the reference's N-step masks.

    A `Tutored` student is taught by dense labels too (see `backbone.py`).
    """

    def __init__(
        self, batches: Batches, vae: Autoencoder, text: CLIPTextModel, tokenizer: PromptTokenizer,
        reference: Reference, schedule: Schedule, config: StageConfig, teacher_steps: int = 4, every: int = 16,
    ) -> None:  # fmt: skip
        self.batches, self.vae, self.text, self.tokenizer = batches, vae, text, tokenizer
        self.reference, self.schedule, self.config = reference, schedule, config
        self.teacher_steps, self.every = teacher_steps, every

    def __call__(self, student: nn.Module, step: int) -> tuple[Tensor, Parts]:
        batch = self.batches.batch(step, self.config.batch, self.config.prompts).to(device_of(student))
        with torch.no_grad():
            text, mask = encode_text(self.text, self.tokenizer, [q.text for q in batch.queries])
        bare: Student | Tutored = unwrap(student)
        tutored = isinstance(bare, Tutored)
        folded = (bare.student if tutored else bare).fold_text(text, mask)
        answer = student(batch.images, batch.latents, folded)
        logits: Tensor = answer[0] if tutored else answer
        labels = shrink_labels(batch.masks, batch.valid, logits.shape[-2:])
        (bce, dice), rank = mask_loss(logits, *labels), ranking_loss(logits, *labels)
        loss = 2 * bce + dice + 0.5 * rank
        parts = {"bce": float(bce.detach()), "dice": float(dice.detach()), "rank": float(rank.detach())}
        if tutored and batch.drawn is not None:
            dense, words = dense_loss(answer[1], batch.drawn)
            loss = loss + dense
            parts["dense"] = words["dice"]
        if step % self.every == 0:
            imitation = self._imitation(batch, logits, text, mask, step)
            loss = loss + 0.5 * imitation
        return loss, parts

    def _imitation(self, batch: Batch, logits: Tensor, text: Tensor, mask: Tensor, step: int) -> Tensor:
        """BCE to the reference's soft masks on at most 16 (picture, prompt) pairs, weighted by how right the reference is."""
        random = torch.Generator().manual_seed(step)
        seen = (batch.masks.flatten(0, 1).sum((-2, -1)) > 0).float() * 4 + 1
        pair = torch.multinomial(seen.cpu(), min(16, len(seen)), generator=random)
        b, k = pair // len(batch.queries), pair % len(batch.queries)
        with torch.no_grad():
            z = batch.latents[b]
            noise = torch.randn(z.shape, generator=random).to(z.device)
            m = sample(
                lambda both, t: self.reference(both, t, text[k], mask[k]), z, self.schedule, self.teacher_steps, noise
            )
            soft = shrink(decode_mask(self.vae, m).sigmoid()[:, None], logits.shape[-2:])[:, 0]
            masks, valid = batch.of(b, k)
            masks, weight = shrink_labels(masks[:, None], valid, logits.shape[-2:])
            weight = torch.ones_like(soft) if weight is None else weight[:, 0]
            truth, judged = masks[:, 0] * weight, soft * weight
            trust = 2 * (judged * truth).sum((-2, -1)) / (judged.sum((-2, -1)) + truth.sum((-2, -1)) + 1)  # soft Dice
        error = F.binary_cross_entropy_with_logits(logits[b, k], soft, reduction="none")
        error = (error * weight).sum((-2, -1)) / weight.sum((-2, -1)).clamp(min=1)
        return (error * trust**2).mean()
