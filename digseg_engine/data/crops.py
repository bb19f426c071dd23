"""Random square crops of labelled pictures, and a loader that reads ahead in threads without changing a result."""

from __future__ import annotations

import math
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from digseg_engine.data.classes import IGNORE
from digseg_engine.data.datasets import Dataset, Item
from digseg_engine.data.masks import Ids

SMALLEST = 8  # pixels of the picture that a crop must span


@dataclass(frozen=True)
class Crops:
    """B crops of S x S pixels."""

    pictures: NDArray[np.int64]  # [B] numbers in the data set
    variants: NDArray[np.int64]  # [B] which of a picture's fixed crops; zeros when crops are drawn anew every time
    images: NDArray[np.uint8]  # [B, S, S, 3]
    ids: Ids  # [B, S, S]


def draw_crop(rng: np.random.Generator, item: Item, side: int) -> tuple[NDArray[np.uint8], Ids]:
    """A random square window, half of them mirrored, at side x side pixels.

    The window spans from half the picture's shorter side to its whole longer side. What lies outside the picture repeats
    its rim, as at inference, and is ignored. Pictures are resized bilinearly, labels by their nearest pixel.
    """
    height, width = item.ids.shape
    low, high = max(SMALLEST, min(height, width) / 2), max(height, width)
    window = round(math.exp(rng.uniform(math.log(min(low, high)), math.log(high))))
    top, left = (int(rng.integers(min(0, n - window), max(0, n - window) + 1)) for n in (height, width))
    rows, columns = (start + np.floor((np.arange(side) + 0.5) * window / side).astype(int) for start in (top, left))
    ids = item.ids[rows.clip(0, height - 1)[:, None], columns.clip(0, width - 1)]
    ids[(rows < 0) | (rows >= height)] = IGNORE
    ids[:, (columns < 0) | (columns >= width)] = IGNORE
    piece = item.image[max(0, top) : top + window, max(0, left) : left + window]
    above, before = max(0, -top), max(0, -left)
    rest = (above, window - above - piece.shape[0]), (before, window - before - piece.shape[1]), (0, 0)
    square = np.pad(piece, rest, mode="edge")
    image = np.asarray(Image.fromarray(square).resize((side, side), Image.Resampling.BILINEAR))
    return (image[:, ::-1], ids[:, ::-1]) if rng.random() < 0.5 else (image, ids)


class CropLoader:
    """Crops number `step`, a pure function of (seed, step, count), read by `workers` threads ahead of need.

    variants: every picture has so many fixed crops (so that what is computed from them can be kept); 0 draws new ones.
    """

    def __init__(self, dataset: Dataset, side: int, seed: int, workers: int = 2, variants: int = 0) -> None:
        self.dataset, self.side, self.seed, self.variants = dataset, side, seed, variants
        self.ahead = 2 * workers
        self._pool = ThreadPoolExecutor(workers, "crops") if workers else None
        self._pending: dict[tuple[int, int], Future[Crops]] = {}
        self._last = -1

    def __call__(self, step: int, count: int) -> Crops:
        """The `count` crops of batch number `step`. Raises InputError naming an unusable file."""
        if self._pool is None:
            return self.load(step, count)
        stride = step - self._last if 0 <= self._last < step else 1  # several processes take turns
        self._last = step
        wanted = [(step + k * stride, count) for k in range(self.ahead + 1)]
        for key in [key for key in self._pending if key not in wanted]:
            self._pending.pop(key).cancel()
        for key in wanted:
            if key not in self._pending:
                self._pending[key] = self._pool.submit(self.load, *key)
        return self._pending.pop((step, count)).result()

    def load(self, step: int, count: int) -> Crops:
        """As a call, in this thread."""
        rng = np.random.default_rng([self.seed, step])
        pictures = rng.integers(0, len(self.dataset), count)
        variants = rng.integers(0, max(1, self.variants), count)
        pairs = [self._crop(step, n, int(i), int(v)) for n, (i, v) in enumerate(zip(pictures, variants))]
        images, ids = (np.stack(arrays) for arrays in zip(*pairs))
        return Crops(pictures, variants, images, ids)

    def _crop(self, step: int, n: int, picture: int, variant: int) -> tuple[NDArray[np.uint8], Ids]:
        key = [self.seed, 1, picture, variant] if self.variants else [self.seed, 0, step, n]
        return draw_crop(np.random.default_rng(key), self.dataset[picture], self.side)
