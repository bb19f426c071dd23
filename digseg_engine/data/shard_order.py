"""Which shards pictures are drawn from at a step: a window that slides over the shards in a random order.

What lies far away is then read shard by shard instead of everywhere at once. The window is a pure function of (seed, number of
pictures drawn before), as everything that decides a batch. Torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

REMOTE_WINDOW = 4  # shards of a data set that is far away, unless said otherwise


@dataclass(frozen=True, eq=False)
class ShardOrder:
    """Windows of `width` shards; one shard makes way for the next when as many pictures were drawn as a shard holds.

    starts: [S + 1], the number of every shard's first picture, and the number of all pictures. Every S shards come in a new
    random order; where two orders meet, a shard may be in the window twice and is then drawn twice as often.
    """

    starts: NDArray[np.int64]
    width: int
    seed: int

    def window(self, drawn: int) -> list[int]:
        """Numbers of the shards that the picture number `drawn` of a training is drawn from."""
        return self._sequence(self._position(drawn), self.width)

    def coming(self, drawn: int) -> list[int]:
        """The window, and the shard that comes into it next."""
        return self._sequence(self._position(drawn), self.width + 1)

    def pictures(self, drawn: int) -> NDArray[np.int64]:
        """Numbers of all pictures in the window."""
        return np.concatenate([np.arange(self.starts[n], self.starts[n + 1]) for n in self.window(drawn)])

    def _position(self, drawn: int) -> int:
        shards = len(self.starts) - 1
        return drawn * shards // int(self.starts[-1])

    def _sequence(self, first: int, count: int) -> list[int]:
        shards = len(self.starts) - 1
        return [_order(self.seed, p // shards, shards)[p % shards] for p in range(first, first + count)]


@lru_cache(64)
def _order(seed: int, epoch: int, shards: int) -> list[int]:
    found: list[int] = np.random.default_rng([seed, epoch, 6]).permutation(shards).tolist()
    return found
