"""The loss of the text encoder: phrases agree with the regions of the picture that they name."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel

from digseg_engine.model.devices import device_of
from digseg_engine.model.student import Student
from digseg_engine.text import PromptTokenizer, pad_tokens
from digseg_engine.training.loop import Parts, StageConfig
from digseg_engine.training.objectives.dense import pool_regions
from digseg_engine.worlds.pool import SceneBatches

TEMPERATURE = 2.3  # starting logarithm of the temperature: ten, as SigLIP
BIAS = -4.0  # starting logit: a region matches few of a batch's phrases (SigLIP: -10, for tens of thousands of them)
SMALLEST_REGION = 20  # pixels; the features of a smaller one are mostly of what surrounds it
COVERED = 0.95  # of a region lies in a phrase's mask: the phrase names it; the rest is for pixels on the border


class TextAlignment(nn.Module):
    """Text encoder and the projections of both sides, trained together; only the text encoder is kept."""

    def __init__(self, text_encoder: CLIPTextModel, region_width: int, dim: int = 128) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.tower = nn.Sequential(nn.Linear(region_width, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim))
        self.project = nn.Linear(text_encoder.config.hidden_size, dim, bias=False)
        self.temperature = nn.Parameter(torch.tensor(TEMPERATURE))
        self.bias = nn.Parameter(torch.tensor(BIAS))

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
        picture, prompt = (batch.masks.sum((-2, -1)) > SMALLEST_REGION).nonzero().T  # [R] each
        regions = batch.masks[picture, prompt]  # [R, S, S]
        everyone = batch.masks[picture]  # [R, K, S, S]: which prompts cover this region
        covered = torch.einsum("rkhw,rhw->rk", everyone, regions) / regions.sum((-2, -1))[:, None] > COVERED
        with torch.no_grad():
            features, _ = self.student.describe(batch.images, batch.latents)
            described = pool_regions([x[picture] for x in features], regions)
        ids, mask = pad_tokens([self.tokenizer.ids(q.text) for q in batch.queries])
        device = device_of(model)
        logits = model(described, torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device))
        error = F.binary_cross_entropy_with_logits(logits, covered.float(), reduction="none")
        if batch.valid is not None:  # what nobody knows of a region teaches nothing
            unknown = torch.einsum("rkhw,rhw->rk", 1 - batch.valid[picture], regions) > 0
            error = error.masked_fill(unknown, 0.0)
        loss = error.sum(1).mean()
        missed = (logits[covered] <= 0).float().mean()
        return loss, {"align": loss.detach(), "missed": missed.detach()}
