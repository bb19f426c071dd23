"""What a training batch is, and what every source of batches answers to.

Because K prompts are asked about every picture of a batch, one batch carries a full B x K grid of masks, absent prompts
included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from digseg_engine.data.query import Query


@dataclass
class Batch:
    """B pictures and the K prompts asked about all of them."""

    images: Tensor  # [B, 3, S, S] in -1..1
    latents: Tensor  # [B, 4, s, s]; [B, 0] before the autoencoder is trained
    queries: list[Query]
    masks: Tensor  # [B, K, S, S] in 0..1
    valid: Tensor | None = None  # [B, K or 1, S, S] in 0..1, 0 where nobody knows the label; None: all pixels count
    drawn: Any = None  # where the pictures come from, when every region's names are known

    def of(self, pictures: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor | None]:
        """Masks [P, S, S] and valid pixels [P, 1, S, S] of P (picture, prompt) pairs."""
        if self.valid is None:
            return self.masks[pictures, prompts], None
        return self.masks[pictures, prompts], self.valid.expand_as(self.masks)[pictures, prompts][:, None]

    def to(self, device: torch.device) -> Batch:
        valid = None if self.valid is None else self.valid.to(device)
        moved = self.images.to(device), self.latents.to(device), self.queries, self.masks.to(device)
        return Batch(*moved, valid, self.drawn)


class Batches(Protocol):
    """A source of training batches; batch number `step` is always the same."""

    seed: int
    names: tuple[str, ...]  # every name that prompts are made of

    def batch(self, step: int, size: int, prompts: int) -> Batch: ...

    def phrase(self, rng: np.random.Generator, name: str) -> Query: ...


def choose_names(rng: np.random.Generator, present: list[str], names: tuple[str, ...], count: int) -> list[str]:
    """`count` of `names`: mostly those present in a batch, a fifth from anywhere (absent ones have an empty mask)."""
    others = max(1, count // 5) if count > 1 else int(rng.random() < 0.2)
    strangers = rng.choice(names, min(others, len(names)), replace=False).tolist()
    known = rng.permutation(present).tolist()[: count - len(strangers)]
    chosen = list(dict.fromkeys(known + strangers))
    spare = [name for name in rng.permutation(names).tolist() if name not in chosen]
    chosen += spare[: count - len(chosen)]
    while len(chosen) < count:  # a small vocabulary: ask again, the phrasing will differ
        chosen += chosen[: count - len(chosen)]
    return chosen


def to_tensor(images: NDArray[np.uint8]) -> Tensor:
    """uint8 [B, S, S, 3] -> float [B, 3, S, S] in -1..1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
