"""The bundled model's own tokenizer: a small byte-level BPE in CLIP's style, trained on the generator's phrases and on words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from digseg_engine.worlds.pool import TRAIN_NAMES
from digseg_engine.worlds.scenes import phrase

START, END, SUFFIX = "<|startoftext|>", "<|endoftext|>", "</w>"
# CLIP's split: contractions, runs of letters, single digits, runs of anything else.
SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
COMMON = [
    "the",
    "a",
    "an",
    "of",
    "in",
    "on",
    "is",
    "are",
    "that",
    "which",
    "with",
    "and",
    "or",
    "not",
    "any",
    "all",
    "some",
    "thing",
    "things",
    "shape",
    "color",
    "colour",
    "object",
]
MOST, HALVED = 20, 500  # how often the commonest word is in the corpus, and after how many it is half as often


def corpus(seed: int = 0, words: Sequence[str] = ()) -> list[str]:
    """Phrases of every training name, common words so that unseen phrasings stay short, and `words`, the first of them most
    often."""
    rng = np.random.default_rng(seed)
    phrases = [phrase(rng, name).text for name, _ in product(TRAIN_NAMES, range(40))]
    ranked = [word for rank, word in enumerate(words) for _ in range(1 + MOST // (1 + rank // HALVED))]
    return phrases + COMMON * 20 + ranked


def train_tokenizer(vocab_size: int, words: Sequence[str] = ()) -> Tokenizer:
    """A tokenizer whose JSON form any `tokenizers` runtime loads: lower-cased, start and end tokens added; always the same.

    words: more of them beside the generator's, commonest first.

    Truncation is left to the caller: a prompt that does not fit is an error, never silently shortened.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=END, end_of_word_suffix=SUFFIX, fuse_unk=False))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), behavior="removed", invert=True), pre_tokenizers.ByteLevel(False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    texts = corpus(words=words) + [f"{character} " for character in alphabet]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[START, END, *_last_letters(tokenizer, texts)],
        initial_alphabet=alphabet,
        end_of_word_suffix=SUFFIX,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer = _plain_letters(tokenizer)
    tokenizer.decoder = decoders.ByteLevel()
    ends = [(token, tokenizer.token_to_id(token)) for token in (START, END)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=ends)
    return tokenizer


def _last_letters(tokenizer: Tokenizer, texts: Sequence[str]) -> list[str]:
    """Every letter that ends a word, as the trainer knows it. It numbers them in the order of a hash table that differs from run
    to run, and breaks ties between merges by these numbers, unless it is given them beforehand."""
    split, normal = tokenizer.pre_tokenizer.pre_tokenize_str, tokenizer.normalizer.normalize_str
    return sorted({f"{piece[-1]}{SUFFIX}" for text in set(texts) for piece, _ in split(normal(text))})


def _plain_letters(tokenizer: Tokenizer) -> Tokenizer:
    """Without what `_last_letters` made special tokens of ordinary ones."""
    body = json.loads(tokenizer.to_str())
    body["added_tokens"] = [token for token in body["added_tokens"] if token["content"] in (START, END)]
    return Tokenizer.from_str(json.dumps(body))
