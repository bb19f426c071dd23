"""Folded text of prompts, computed once each and kept in a cache bounded in bytes.

Prompts are encoded one by one, so that what a prompt finds never depends on the company it is asked in.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, overload

import numpy as np

from digseg_engine.contract import token_bucket
from digseg_engine.errors import UsageError
from digseg_engine.runtime.backends import Array, TokenMask, Tokens
from digseg_engine.text import PromptTokenizer, pad_tokens

MOST_BYTES = 256 << 20
Encode = Callable[[Tokens, TokenMask], tuple[Array, Array]]


@dataclass(frozen=True)
class PromptText:
    """Folded text of one prompt: keys [S, H, d, L], values [S, H, L, Co]; the first `tokens` of L are real."""

    keys: Array
    values: Array
    tokens: int

    @property
    def size(self) -> int:
        return int(self.keys.nbytes + self.values.nbytes)


class Prepared(Sequence[str]):
    """Prompts with their folded text, made by `Engine.prepare` and taken wherever prompts are: nothing is tokenised, looked
    up or stacked again. It belongs to the engine that made it."""

    def __init__(self, texts: Sequence[str], folded: Any, owner: Any) -> None:
        self.texts, self.folded, self.owner = tuple(texts), folded, owner

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        return self.texts[index]

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        return f"Prepared({list(self.texts)})"


class PromptCache:
    """Least recently used prompts leave when `most_bytes` is passed. Thread-safe."""

    def __init__(self, tokenizer: PromptTokenizer, encode: Encode, most_bytes: int = MOST_BYTES) -> None:
        self.tokenizer, self._encode, self._most = tokenizer, encode, most_bytes
        self._known: OrderedDict[str, PromptText] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._known)

    @property
    def size(self) -> int:
        """Bytes held."""
        return self._bytes

    def clear(self) -> None:
        with self._lock:
            self._known.clear()
            self._bytes = 0

    def fold(self, prompts: Sequence[str]) -> tuple[Array, Array, TokenMask]:
        """K prompts -> keys [K, S, H, d, L], values [K, S, H, L, Co], mask [K, L], padded to one token bucket. Raises
        UsageError for prompts that another engine prepared."""
        self.check_owner(prompts)
        if isinstance(prompts, Prepared):
            folded: tuple[Array, Array, TokenMask] = prompts.folded
            return folded
        parts = [self.one(prompt) for prompt in prompts]
        length = token_bucket(max(part.tokens for part in parts))
        keys = np.stack([to_length(part.keys, length, 3) for part in parts])
        values = np.stack([to_length(part.values, length, 2) for part in parts])
        return keys, values, np.arange(length)[None, :] < np.array([[part.tokens] for part in parts])

    def check_owner(self, prompts: Sequence[str]) -> None:
        """Raises UsageError for prompts that another engine prepared."""
        if isinstance(prompts, Prepared) and prompts.owner is not self:
            raise UsageError("these prompts were prepared by another engine, whose model may read text otherwise; prepare "
                             "them with this one: engine.prepare(prompts)")  # fmt: skip

    def one(self, prompt: str) -> PromptText:
        """Folded text of one prompt, from the cache where it is known."""
        with self._lock:
            if prompt in self._known:
                self._known.move_to_end(prompt)
                return self._known[prompt]
        row = self.tokenizer.ids(prompt)
        keys, values = self._encode(*pad_tokens([row]))
        fresh = PromptText(keys[0].copy(), values[0].copy(), len(row))  # it outlives the call
        with self._lock:
            if prompt not in self._known:
                self._known[prompt] = fresh
                self._bytes += fresh.size
            while self._bytes > self._most and len(self._known) > 1:
                self._bytes -= self._known.popitem(last=False)[1].size
        return fresh


def to_length(array: Array, length: int, axis: int) -> Array:
    """Cut or zero-pad one axis; what is cut or added is padding, which the model masks out."""
    have = array.shape[axis]
    if have >= length:
        return array.take(range(length), axis=axis)
    widths = [(0, length - have) if i == axis else (0, 0) for i in range(array.ndim)]
    return np.pad(array, widths)
