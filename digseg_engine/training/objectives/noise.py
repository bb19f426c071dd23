"""The random numbers of a loss: a pure function of the run's seed and the number of the micro-batch."""

from __future__ import annotations

import numpy as np
import torch


def generator(seed: int, number: int) -> torch.Generator:
    """A CPU generator for micro-batch `number` of the run with `seed`, unlike that of any other pair."""
    mixed = np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed) >> 1)
