"""Random square crops of labelled pictures, and a loader that reads ahead in threads without changing a result."""

from __future__ import annotations

import math
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

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


class Window(NamedTuple):
    """A square of a picture, at pixel (top, left) and `span` pixels wide; it may reach over the picture's edges."""

    top: int
    left: int
    span: int
    mirrored: bool


def draw_window(rng: np.random.Generator, height: int, width: int) -> Window:
    """A random window, from half the picture's shorter side to its whole longer side, half of them mirrored."""
    low, high = max(SMALLEST, min(height, width) / 2), max(height, width)
    span = round(math.exp(rng.uniform(math.log(min(low, high)), math.log(high))))
    top, left = (int(rng.integers(min(0, n - span), max(0, n - span) + 1)) for n in (height, width))
    return Window(top, left, span, bool(rng.random() < 0.5))


def draw_crop(rng: np.random.Generator, item: Item, side: int) -> tuple[NDArray[np.uint8], Ids]:
    """A random window of a picture and its labels at side x side pixels."""
    window = draw_window(rng, *item.ids.shape)
    return cut_picture(item.image, item.ids.shape, window, side), cut_labels(item.ids, window, side)


def cut_labels(ids: Ids, window: Window, side: int) -> Ids:
    """Labels of a window by their nearest pixel, [side, side]; what lies outside the picture is ignored."""
    height, width = ids.shape
    steps = np.floor((np.arange(side) + 0.5) * window.span / side).astype(int)
    rows, columns = window.top + steps, window.left + steps
    labels = ids[rows.clip(0, height - 1)[:, None], columns.clip(0, width - 1)]
    labels[(rows < 0) | (rows >= height)] = IGNORE
    labels[:, (columns < 0) | (columns >= width)] = IGNORE
    return labels[:, ::-1] if window.mirrored else labels


def cut_picture(image: NDArray[np.uint8], shape: tuple[int, ...], window: Window, side: int) -> NDArray[np.uint8]:
    """A window of a picture resized bilinearly, [side, side, 3]; outside the picture its rim is repeated, as at inference.

    shape: the whole picture's (height, width), in whose pixels the window is given; `image` may be decoded 1/2, 1/4 or
    1/8 as large.
    """
    factor = 2 ** round(math.log2(shape[0] / image.shape[0])) if max(shape) > max(image.shape) else 1
    start = window.top / factor, window.left / factor
    firsts = [math.floor(at) for at in start]
    lasts = [math.ceil(at + window.span / factor) for at in start]
    spans = [(max(0, first), min(last, n)) for first, last, n in zip(firsts, lasts, image.shape)]
    piece = image[slice(*spans[0]), slice(*spans[1])]
    beyond = [(low - first, last - high) for (low, high), first, last in zip(spans, firsts, lasts)]
    square = Image.fromarray(np.pad(piece, (*beyond, (0, 0)), mode="edge"))
    y, x = (at - first for at, first in zip(start, firsts))
    box = (x, y, x + window.span / factor, y + window.span / factor)
    pixels = np.asarray(square.resize((side, side), Image.Resampling.BILINEAR, box=box))
    return pixels[:, ::-1] if window.mirrored else pixels


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
        ids = self.dataset.read_ids(picture)
        window = draw_window(np.random.default_rng(key), *ids.shape)
        image = self.dataset.read_reduced(picture, window.span // self.side)
        return cut_picture(image, ids.shape, window, self.side), cut_labels(ids, window, self.side)
