"""Prompts as text features, for training and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPTextModel

from digseg_engine.data.query import Query
from digseg_engine.text import PromptTokenizer, pad_tokens

Phrase = Callable[[np.random.Generator, str], Query]


def encode_text(text_encoder: CLIPTextModel, tokenizer: PromptTokenizer, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Prompts -> text features [K, L, D] and their mask [K, L]; the empty prompt is allowed here."""
    ids, mask = pad_tokens([tokenizer.ids(prompt) for prompt in prompts])
    device = next(text_encoder.parameters()).device
    return text_encoder(torch.from_numpy(ids).to(device)).last_hidden_state, torch.from_numpy(mask).to(device)


@torch.no_grad()
def typical_tokens(
    text_encoder: CLIPTextModel, tokenizer: PromptTokenizer, names: Sequence[str], phrase: Phrase
) -> Tensor:
    """Features of all tokens but the start token in four phrasings of every name, [N, D]."""
    rng = np.random.default_rng(0)
    phrases = [phrase(rng, name).text for name in names for _ in range(4)]
    text, mask = encode_text(text_encoder, tokenizer, phrases)
    return torch.cat([row[1 : int(live.sum())] for row, live in zip(text, mask)])
