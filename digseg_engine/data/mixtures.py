"""Training batches from several data sets, each drawn by its weight.

A batch comes from one set as a whole. All its prompts are asked about all its pictures, and only the set's own classes, and
what it declares absent, have an answer there: of a class that a set does not label, its pictures may well hold some. So no
prompt of another set is asked, and a set teaches nothing about what it does not label.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from digseg_engine.data.batch import Batch, Batches, Choose
from digseg_engine.data.batches import FolderBatches
from digseg_engine.data.loader import APART
from digseg_engine.data.query import Query

BLOCK = 1024  # steps whose sets are drawn together, so that any step is reached soon
COMING = 8 * APART  # steps ahead of which a set is told


class MixedBatches:
    """Batch number `step` of the mixture is the n-th batch of one set, where the set was drawn n times before: of every set
    come the batches that it gives alone, in order. Which set it is, is a pure function of (seed, step)."""

    def __init__(self, parts: Sequence[Batches], weights: Sequence[float], seed: int) -> None:
        self.parts, self.seed = tuple(parts), seed
        self.odds = np.array(weights) / sum(weights)
        self.names = tuple(dict.fromkeys(name for part in parts for name in part.names))
        self._before = [np.zeros(len(parts), np.int64)]  # how often every set was drawn before block b
        self._last = -1

    def batch(self, step: int, size: int, prompts: int) -> Batch:
        """Batch number `step`, from one of the sets."""
        stride = step - self._last if 0 <= self._last < step else 1  # several processes take turns
        self._last = step
        number, own_step = self.place(step)
        part = self.parts[number]
        if isinstance(part, FolderBatches):
            coming = [self.place(step + k * stride) for k in range(1, COMING)]
            part.load.expect([s for n, s in coming if n == number])
        return part.batch(own_step, size, prompts)

    def asked_by(self, choose: Choose) -> MixedBatches:
        other = copy.copy(self)
        other.parts = tuple(part.asked_by(choose) for part in self.parts)
        return other

    def phrase(self, rng: np.random.Generator, name: str) -> Query:
        return next(part for part in self.parts if name in part.names).phrase(rng, name)

    def pictures(self, step: int, size: int) -> list[str]:
        number, own_step = self.place(step)
        return self.parts[number].pictures(own_step, size)

    def place(self, step: int) -> tuple[int, int]:
        """(number of the set that batch `step` comes from, number of the batch in that set)."""
        block, within = divmod(step, BLOCK)
        while len(self._before) <= block:
            drawn = np.bincount(self._draw(len(self._before) - 1), minlength=len(self.parts))
            self._before.append(self._before[-1] + drawn)
        chosen = self._draw(block)
        number = int(chosen[within])
        return number, int(self._before[block][number] + (chosen[:within] == number).sum())

    def _draw(self, block: int) -> NDArray[np.int64]:
        return np.random.default_rng([self.seed, block, 4]).choice(len(self.parts), BLOCK, p=self.odds)
