"""A larger vocabulary for a trained checkpoint: a new tokenizer, and a text encoder of the same sizes taught a sentence encoder's
similarities (`objectives/words.py`). The student is not touched: phrases of the generated scenes mean what they meant.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from transformers import CLIPTextConfig, CLIPTextModel

from digseg_engine.errors import InputError
from digseg_engine.model.folder import find_start
from digseg_engine.model.pretrained import load_checkpoint
from digseg_engine.text import PromptTokenizer
from digseg_engine.training.loop import StageConfig
from digseg_engine.training.objectives.words import Lexicon, WordAlignment, WordsLoss
from digseg_engine.training.run import Run
from digseg_engine.worlds.pool import TRAIN_NAMES
from digseg_engine.worlds.scenes import phrase
from digseg_engine.worlds.vocabulary import train_tokenizer

PHRASINGS = 40  # of every name of the generated scenes, whose features are kept


@dataclass(frozen=True)
class WordsConfig:
    """text: the stage; its batch is of phrases. vocabulary: pieces of the tokenizer. keep_names: names of data sets, at the head
    of the lexicon, mean what they meant, too: for a student that knows them."""

    text: StageConfig
    vocabulary: int = 8192
    keep_names: bool = False
    seed: int = 0


def learn_words(source: str, lexicon: Path, out: Path, config: WordsConfig, resume: bool = False) -> Path:
    """From the checkpoint `source` to one that knows the words of `lexicon`, in `out`; returns its directory.

    Raises CheckpointError for an unusable start, InputError for an unusable lexicon, UsageError for an occupied `out`.
    """
    start, table = find_start(source), read_lexicon(lexicon)
    run = Run(out, resume, config.seed)
    run.describe(config, init=source, lexicon=lexicon.name)
    torch.manual_seed(config.seed)
    checkpoint = load_checkpoint(start)
    raw = train_tokenizer(config.vocabulary, [text for text in table.texts if " " not in text])
    sizes = checkpoint.text_encoder.config.to_dict() | {"vocab_size": raw.get_vocab_size()}
    encoder, tokenizer = CLIPTextModel(CLIPTextConfig(**sizes)), PromptTokenizer(raw)
    inherit(encoder, checkpoint.text_encoder, tokenizer, checkpoint.tokenizer)
    aligned = WordAlignment(encoder, checkpoint.student, table.vectors.shape[1])
    former = checkpoint.text_encoder, checkpoint.tokenizer
    kept = kept_phrases()
    if config.keep_names:  # as often as the phrases
        kept += list(table.texts[: table.known]) * -(-len(kept) // max(1, table.known))
    run.stage("text", aligned, WordsLoss(table, kept, former, tokenizer, config.text, config.seed), config.text)
    checkpoint.text_encoder, checkpoint.tokenizer = encoder, tokenizer
    return run.finish(checkpoint, raw.to_str(), start)


def read_lexicon(path: Path) -> Lexicon:
    """What `scripts/sentence_vectors.py` wrote: vectors [N, T], and in the metadata their texts and how many are names of data
    sets. Raises InputError when it cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            return Lexicon(tuple(json.loads(about["texts"])), file.get_tensor("vectors"), int(about.get("known", 0)))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InputError(
            f"{path} is not a lexicon: {error!r:.500}; expected what scripts/sentence_vectors.py writes"
        ) from error


def kept_phrases() -> list[str]:
    """Phrases of the generated scenes as the student was trained with them."""
    rng = np.random.default_rng(0)
    return sorted({phrase(rng, name).text for name in TRAIN_NAMES for _ in range(PHRASINGS)})


@torch.no_grad()
def inherit(encoder: CLIPTextModel, former: CLIPTextModel, tokenizer: PromptTokenizer, before: PromptTokenizer) -> None:
    """Give an encoder of the same sizes the weights of the former, and to pieces that both tokenizers have the former rows."""
    weights, old = encoder.state_dict(), former.state_dict()
    rows = next(name for name in weights if name.endswith("token_embedding.weight"))
    known = before.vocabulary()
    for piece, number in tokenizer.vocabulary().items():
        if piece in known:
            weights[rows][number] = old[rows][known[piece]]
    encoder.load_state_dict({name: weights[rows] if name == rows else old[name] for name in weights})
