"""Prompts to token numbers with the bundle's own tokenizer (`tokenizer.json`). Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from unicodedata import category

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from digseg_engine.contract import TOKEN_BUCKETS, token_bucket
from digseg_engine.errors import BundleError, InputError

MAX_TOKENS = TOKEN_BUCKETS[-1]
MOST_PROMPTS = 10_000
MOST_CHARACTERS = 4096  # of one prompt; 77 tokens are far fewer


def check_prompts(prompts: Sequence[str]) -> list[str]:
    """The prompts as a list. Raises InputError when there is none, more than MOST_PROMPTS, or one is not text, blank, longer
    than MOST_CHARACTERS or holds control characters: what no model can be asked is refused before anything is made of it."""
    if isinstance(prompts, str):
        raise InputError(f"prompts must be a list of texts, got the single text {prompts!r}; write [{prompts!r}]")
    if not isinstance(prompts, Sequence):
        raise InputError(f"prompts must be a list of texts, got {type(prompts).__name__}; write list(...) around it")
    if not prompts:
        raise InputError('no prompt given; name at least one thing to segment, for example "red circle"')
    if len(prompts) > MOST_PROMPTS:
        raise InputError(
            f"{len(prompts)} prompts given; at most {MOST_PROMPTS} are asked at once; ask in several calls"
        )
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise InputError(f"prompt {i} must be text, got {type(prompt).__name__}; pass a string")
        if len(prompt) > MOST_CHARACTERS:
            raise InputError(f"prompt {i} ({prompt[:20]!r}...) has {len(prompt)} characters, at most {MOST_CHARACTERS} are read; "
                             "shorten it")  # fmt: skip
        if not prompt.strip():
            raise InputError(f'prompt {i} is empty; expected a few words, for example "red circle"')
        if any("\ud800" <= character <= "\udfff" for character in prompt):  # surrogates: bytes that were not UTF-8
            raise InputError(f"prompt {i} ({prompt!a}) is not valid text; expected UTF-8")
        if control := next((c for c in prompt if category(c) == "Cc" and not c.isspace()), ""):
            raise InputError(
                f"prompt {i} ({prompt!a}) holds the control character U+{ord(control):04X}; expected words"
            )
    return list(prompts)


class PromptTokenizer:
    """Wraps a `tokenizers.Tokenizer`. Thread-safe: encoding does not change it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, path: Path) -> PromptTokenizer:
        """Read a `tokenizer.json`. Raises BundleError when it cannot be read."""
        try:
            return cls.parse(path.read_bytes(), path)
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error.strerror or error}; export the bundle again") from error

    @classmethod
    def parse(cls, body: bytes, path: Path) -> PromptTokenizer:
        """From the bytes of a `tokenizer.json`, which `path` names in messages. Raises BundleError."""
        try:
            return cls(Tokenizer.from_buffer(body))
        except Exception as error:
            raise BundleError(f"{path} is not a readable tokenizer.json: {error}; export the bundle again") from error

    def ids(self, prompt: str) -> list[int]:
        """Token numbers of one prompt, start and end included. Raises InputError over MAX_TOKENS tokens."""
        ids: list[int] = self._tokenizer.encode(prompt).ids
        if len(ids) > MAX_TOKENS:
            short = prompt if len(prompt) <= 40 else prompt[:37] + "..."
            raise InputError(f"prompt {short!r} has {len(ids)} tokens, at most {MAX_TOKENS} fit "
                             "(start and end included); shorten it")  # fmt: skip
        return ids

    def vocabulary(self) -> dict[str, int]:
        """Every piece that the tokenizer has, and its number."""
        pieces: dict[str, int] = self._tokenizer.get_vocab()
        return pieces

    def encode(self, prompts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Prompts -> token_ids [K, L] int64 and token_mask [K, L] bool, L the bucket of the longest prompt."""
        rows = [self.ids(prompt) for prompt in check_prompts(prompts)]
        return pad_tokens(rows)


def pad_tokens(rows: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Rows of token numbers -> padded [K, L] and its mask. Padding repeats the last token (CLIP pads with the end)."""
    length = token_bucket(max(len(row) for row in rows))
    ids = np.array([[*row, *[row[-1]] * (length - len(row))] for row in rows], np.int64)
    mask = np.arange(length)[None, :] < np.array([[len(row)] for row in rows])
    return ids, mask
