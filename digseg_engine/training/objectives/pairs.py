"""What the reference learns from: pictures with one prompt each, as latents and encoded text."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import CLIPTextModel

from digseg_engine.data.batch import Batches
from digseg_engine.data.wordings import encode_text
from digseg_engine.model.autoencoder import Autoencoder, encode_mask
from digseg_engine.text import PromptTokenizer
from digseg_engine.training.loop import StageConfig

PRESENT_ODDS = 12.0  # present over absent: three quarters of the draws are present where one prompt in five is


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
        weights = batch.present.cpu().float() * (PRESENT_ODDS - 1) + 1
        choice = torch.multinomial(weights, 1, generator=random)[:, 0]  # [B]
        masks, valid = batch.of(torch.arange(len(choice)), choice)
        text, token_mask = encode_text(self.text, self.tokenizer, [batch.queries[int(i)].text for i in choice])
        masks, valid = masks.to(device), None if valid is None else valid.to(device)
        return Pairs(batch.latents.to(device), masks, encode_mask(self.vae, masks), text, token_mask, valid)
