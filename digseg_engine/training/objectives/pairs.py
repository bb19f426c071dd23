"""What the reference learns from: pictures with one prompt each, as latents and encoded text."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import CLIPTextModel

from digseg_engine.data.batch import Batches
from digseg_engine.data.wordings import encode_text
from digseg_engine.errors import UsageError
from digseg_engine.model.autoencoder import Autoencoder, encode_mask
from digseg_engine.text import PromptTokenizer
from digseg_engine.training.loop import StageConfig

PRESENT_ODDS = 12.0  # present over absent: three quarters of the draws are present where one prompt in five is
EMPTY = ""  # the prompt that a student's trunk is asked


@dataclass(frozen=True)
class Pairs:
    """B pictures with one prompt each, three quarters of the prompts present."""

    z: Tensor  # image latents [B, 4, h, w]
    masks: Tensor  # [B, H, W] in 0..1
    clean: Tensor  # mask latents [B, 4, h, w]
    text: Tensor  # [B, L, D]
    token_mask: Tensor  # [B, L]
    valid: Tensor | None = None  # [B, 1, H, W] in 0..1; None: all pixels count
    trunk: Tensor | None = None  # [B, L, D]: what the trunk is asked; None: `text`
    trunk_mask: Tensor | None = None  # [B, L]

    @property
    def conditioning(self) -> tuple[Tensor, ...]:
        """What the reference is told: text and mask, and those of the trunk where they differ."""
        if self.trunk is None or self.trunk_mask is None:
            return self.text, self.token_mask
        return self.text, self.token_mask, self.trunk, self.trunk_mask


def check_dropout(share: float) -> None:
    """Raises UsageError for a share of prompts to drop that is none."""
    if not 0 <= share <= 1:
        raise UsageError(f"prompt_dropout must be a share of the prompts from 0 to 1, got {share}")


class PairSource:
    """Draws `Pairs`: the frozen autoencoder and text encoder around a source of batches.

    dropout: share of the pairs whose trunk is asked the empty prompt, as the student's always is; the text pathway, which the
    student has too, is still told the prompt. Drawn from the micro-batch's own generator, after everything else of the pair.
    """

    def __init__(
        self, batches: Batches, vae: Autoencoder, text: CLIPTextModel, tokenizer: PromptTokenizer, config: StageConfig,
        dropout: float = 0.0,
    ) -> None:  # fmt: skip
        self.batches, self.vae, self.text, self.tokenizer, self.config = batches, vae, text, tokenizer, config
        self.dropout = dropout

    @torch.no_grad()
    def draw(self, step: int, random: torch.Generator, device: torch.device) -> Pairs:
        batch = self.batches.batch(step, self.config.batch, self.config.batch)
        weights = batch.present.cpu().float() * (PRESENT_ODDS - 1) + 1
        choice = torch.multinomial(weights, 1, generator=random)[:, 0]  # [B]
        masks, valid = batch.of(torch.arange(len(choice)), choice)
        prompts = [batch.queries[int(i)].text for i in choice]
        trunk: tuple[Tensor, Tensor] | tuple[None, None] = (None, None)
        if self.dropout:
            dropped = torch.rand(len(prompts), generator=random) < self.dropout
            text, token_mask = encode_text(self.text, self.tokenizer, [*prompts, EMPTY])
            asked = torch.where(dropped, len(prompts), torch.arange(len(prompts))).to(text.device)  # rows, [B]
            trunk = text[asked], token_mask[asked]
            text, token_mask = text[:-1], token_mask[:-1]
        else:
            text, token_mask = encode_text(self.text, self.tokenizer, prompts)
        masks, valid = masks.to(device), None if valid is None else valid.to(device)
        return Pairs(batch.latents.to(device), masks, encode_mask(self.vae, masks), text, token_mask, valid, *trunk)
