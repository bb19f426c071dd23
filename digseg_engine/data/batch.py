"""What a training batch is, and what every source of batches answers to.

Because K prompts are asked about every picture of a batch, one batch carries a full B x K grid of masks, absent prompts
included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from digseg_engine.data.classes import IGNORE
from digseg_engine.data.query import Query

CPU = torch.device("cpu")


class Labels(Protocol):
    """What is known of B pictures for K prompts."""

    @property
    def masks(self) -> Tensor:
        """[B, K, S, S] in 0..1."""

    @property
    def valid(self) -> Tensor | None:
        """[B, K or 1, S, S] in 0..1, 0 where nobody knows the label; None: all pixels count."""

    @property
    def present(self) -> Tensor:
        """[B, K] bool: does a mask hold any pixel."""

    def to(self, device: torch.device) -> Labels: ...


@dataclass
class Planes:
    """Labels as one mask per picture and prompt, for sources whose regions overlap."""

    masks: Tensor
    valid: Tensor | None = None

    @property
    def present(self) -> Tensor:
        return self.masks.sum((-2, -1)) > 0

    def to(self, device: torch.device) -> Planes:
        return Planes(self.masks.to(device), None if self.valid is None else self.valid.to(device))


@dataclass
class Numbers:
    """Labels as one class number per pixel: K times less to carry than masks, which are made where they are used."""

    ids: Tensor  # [B, S, S] int16; IGNORE where nobody knows the label
    chosen: Tensor  # [K] int16: the class that each prompt means
    present: Tensor
    whole: bool  # no pixel is ignored

    @cached_property
    def masks(self) -> Tensor:
        return (self.ids[:, None] == self.chosen[:, None, None]).float()

    @cached_property
    def valid(self) -> Tensor | None:
        return None if self.whole else (self.ids != IGNORE)[:, None].float()

    def to(self, device: torch.device) -> Numbers:
        if self.ids.device == device:
            return self
        ids, chosen, present = (part.to(device, non_blocking=True) for part in (self.ids, self.chosen, self.present))
        return Numbers(ids, chosen, present, self.whole)


@dataclass
class Batch:
    """B pictures and the K prompts asked about all of them."""

    images: Tensor  # [B, 3, S, S] in -1..1
    latents: Tensor  # [B, 4, s, s]; [B, 0] before the autoencoder is trained
    queries: list[Query]
    labels: Labels
    drawn: Any = None  # where the pictures come from, when every region's names are known

    @property
    def masks(self) -> Tensor:
        """[B, K, S, S] in 0..1."""
        return self.labels.masks

    @property
    def valid(self) -> Tensor | None:
        """[B, K or 1, S, S] in 0..1, 0 where nobody knows the label; None: all pixels count."""
        return self.labels.valid

    @property
    def present(self) -> Tensor:
        """[B, K] bool: is a prompt's thing in a picture."""
        return self.labels.present

    def of(self, pictures: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor | None]:
        """Masks [P, S, S] and valid pixels [P, 1, S, S] of P (picture, prompt) pairs."""
        if self.valid is None:
            return self.masks[pictures, prompts], None
        return self.masks[pictures, prompts], self.valid.expand_as(self.masks)[pictures, prompts][:, None]

    def to(self, device: torch.device) -> Batch:
        moved = self.images.to(device), self.latents.to(device), self.queries, self.labels.to(device)
        return Batch(*moved, self.drawn)


Choose = Callable[[np.random.Generator, list[str], tuple[str, ...], int], list[str]]


class Batches(Protocol):
    """A source of training batches; batch number `step` is always the same."""

    seed: int
    names: tuple[str, ...]  # every name that prompts are made of

    def batch(self, step: int, size: int, prompts: int) -> Batch: ...

    def phrase(self, rng: np.random.Generator, name: str) -> Query: ...

    def asked_by(self, choose: Choose) -> Batches:
        """The same pictures, asked what `choose` says in place of `choose_names`."""

    def pictures(self, step: int, size: int) -> list[str]:
        """The files, or scenes by their numbers, that batch number `step` of `size` pictures is made of."""


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


def carried(array: NDArray[Any], device: torch.device) -> Tensor:
    """An array as a tensor on a device; from page-locked memory to a GPU, so that the copy runs beside the GPU's work."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def to_tensor(images: NDArray[np.uint8], device: torch.device = CPU) -> Tensor:
    """uint8 [B, S, S, 3] -> float [B, 3, S, S] in -1..1, made on the device."""
    return carried(images, device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
