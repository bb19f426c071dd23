"""Pictures drawn more often the rarer their classes are: repeat factors of Gupta, Dollar and Girshick 2019 (LVIS,
arXiv:1908.03195, section 4.1)."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from digseg_engine.data.checks import label_counts
from digseg_engine.data.datasets import Dataset
from digseg_engine.files import replacing

READERS = 2  # threads that read masks


def repeat_factors(present: NDArray[np.bool_], threshold: float) -> NDArray[np.float64]:
    """How many times as often each picture is to be drawn, [N], at least 1.

    present: [N, C], which classes a picture shows. A class in a share f of the pictures has the factor max(1,
    sqrt(threshold / f)), a picture the largest factor of its classes.
    """
    share = present.mean(0)
    factors = np.sqrt(threshold / np.where(share > 0, share, np.inf)).clip(min=1)
    return np.asarray(np.where(present, factors, 1.0).max(1, initial=1.0))


def class_presence(dataset: Dataset, kept: Path, tick: Callable[[], None] = lambda: None) -> NDArray[np.bool_]:
    """Which classes every picture shows, [N, C], read from all masks once and then from the file `kept`."""
    shape = len(dataset), len(dataset.names)
    if not kept.is_file():

        def read(i: int) -> NDArray[np.bool_]:
            tick()
            return np.asarray(label_counts(dataset.read_ids(i), shape[1])[:-2] > 0)

        with ThreadPoolExecutor(READERS) as pool:
            found = np.stack(list(pool.map(read, range(len(dataset)))))
        kept.parent.mkdir(parents=True, exist_ok=True)
        with replacing(kept) as temporary, temporary.open("wb") as file:
            np.save(file, np.packbits(found))
    return np.unpackbits(np.load(kept), count=shape[0] * shape[1]).reshape(shape).astype(bool)
