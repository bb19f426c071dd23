"""Square windows of labelled pictures: where they lie, and how pixels and labels are cut from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from digseg_engine.data.classes import IGNORE
from digseg_engine.data.datasets import Item
from digseg_engine.data.masks import Ids

SMALLEST = 8  # pixels of the picture that a crop must span
TURNED = 15.0  # degrees, the most that "rotation" turns either way
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Crops:
    """B crops of S x S pixels."""

    pictures: NDArray[np.int64]  # [B] numbers in the data set
    variants: NDArray[np.int64]  # [B] which of a picture's fixed crops; zeros when crops are drawn anew every time
    images: Pixels  # [B, S, S, 3]
    ids: Ids  # [B, S, S]


class Window(NamedTuple):
    """A square of a picture, at pixel (top, left) and `span` pixels wide; it may reach over the picture's edges."""

    top: int
    left: int
    span: int
    mirrored: bool
    angle: float = 0.0  # degrees by which the square is turned about its centre


def draw_window(rng: np.random.Generator, height: int, width: int, augment: Sequence[str] = ()) -> Window:
    """A random window, from half the picture's shorter side to its whole longer side, half of them mirrored.

    augment: with "scale" from an eighth of the shorter side on, with "rotation" turned by up to `TURNED` degrees.
    """
    least = 8 if "scale" in augment else 2
    low, high = max(SMALLEST, min(height, width) / least), max(height, width)
    span = round(math.exp(rng.uniform(math.log(min(low, high)), math.log(high))))
    top, left = (int(rng.integers(min(0, n - span), max(0, n - span) + 1)) for n in (height, width))
    mirrored = bool(rng.random() < 0.5)
    return Window(top, left, span, mirrored, float(rng.uniform(-TURNED, TURNED)) if "rotation" in augment else 0.0)


def draw_crop(rng: np.random.Generator, item: Item, side: int) -> tuple[Pixels, Ids]:
    """A random window of a picture and its labels at side x side pixels."""
    window = draw_window(rng, *item.ids.shape)
    return cut_picture(item.image, item.ids.shape, window, side), cut_labels(item.ids, window, side)


def cut_labels(ids: Ids, window: Window, side: int) -> Ids:
    """Labels of a window by their nearest pixel, [side, side]; what lies outside the picture is ignored."""
    if window.angle:
        return _cut_turned_labels(ids, window, side)
    height, width = ids.shape
    steps = np.floor((np.arange(side) + 0.5) * window.span / side).astype(int)
    rows, columns = window.top + steps, window.left + steps
    if window.mirrored:
        columns = columns[::-1]
    labels = ids.take(columns.clip(0, width - 1), 1).take(rows.clip(0, height - 1), 0)
    labels[(rows < 0) | (rows >= height)] = IGNORE
    labels[:, (columns < 0) | (columns >= width)] = IGNORE
    return labels


def cut_picture(image: Pixels, shape: tuple[int, ...], window: Window, side: int) -> Pixels:
    """A window of a picture resized bilinearly, [side, side, 3]; outside the picture its rim is repeated, as at inference.

    shape: the whole picture's (height, width), in whose pixels the window is given; `image` may be decoded 1/2, 1/4 or
    1/8 as large.
    """
    if window.angle:
        return _cut_turned_picture(image, shape, window, side)
    factor = 2 ** round(math.log2(shape[0] / image.shape[0])) if max(shape) > max(image.shape) else 1
    start = window.top / factor, window.left / factor
    firsts = [math.floor(at) for at in start]
    lasts = [math.ceil(at + window.span / factor) for at in start]
    spans = [(max(0, first), min(last, n)) for first, last, n in zip(firsts, lasts, image.shape)]
    piece = image[slice(*spans[0]), slice(*spans[1])]
    beyond = [(low - first, last - high) for (low, high), first, last in zip(spans, firsts, lasts)]
    square = np.pad(piece, (*beyond, (0, 0)), mode="edge")
    if factor == 1:
        pixels = _resized(square, side)
    else:  # the window may lie between the pixels of a picture decoded smaller
        y, x = (at - first for at, first in zip(start, firsts))
        box = (x, y, x + window.span / factor, y + window.span / factor)
        pixels = np.array(Image.fromarray(square).resize((side, side), Image.Resampling.BILINEAR, box=box))
    return torch.from_numpy(pixels).flip(1).numpy() if window.mirrored else pixels  # 20 times quicker than NumPy's copy


def _resized(square: Pixels, side: int) -> Pixels:
    """[n, n, 3] -> [side, side, 3] bilinearly, averaging where it shrinks: Pillow's result to 1 of 255, several times
    quicker (PyTorch has the same integer arithmetic in vector instructions for pixels that lie together)."""
    together = torch.from_numpy(square)[None].permute(0, 3, 1, 2)
    pixels = F.interpolate(together, (side, side), mode="bilinear", antialias=True)
    return pixels[0].permute(1, 2, 0).numpy()


def _cut_turned_labels(ids: Ids, window: Window, side: int) -> Ids:
    height, width = ids.shape
    cosine, sine = math.cos(math.radians(window.angle)), math.sin(math.radians(window.angle))
    steps = ((np.arange(side) + 0.5) / side - 0.5) * window.span  # from the centre, in pixels of the picture
    across, down = steps[::-1] if window.mirrored else steps, steps[:, None]
    columns = np.floor(window.left + window.span / 2 + cosine * across - sine * down).astype(int)
    rows = np.floor(window.top + window.span / 2 + sine * across + cosine * down).astype(int)
    labels = ids.ravel().take(rows.clip(0, height - 1) * width + columns.clip(0, width - 1))
    labels[(rows < 0) | (rows >= height) | (columns < 0) | (columns >= width)] = IGNORE
    return labels


def _cut_turned_picture(image: Pixels, shape: tuple[int, ...], window: Window, side: int) -> Pixels:
    """The upright square around the turned one, resized, and the turned one out of it at about its own resolution."""
    cosine, sine = math.cos(math.radians(window.angle)), math.sin(math.radians(window.angle))
    margin = math.ceil(window.span * (cosine + abs(sine) - 1) / 2) + 1
    around = Window(window.top - margin, window.left - margin, window.span + 2 * margin, False)
    wide = max(side, round(side * around.span / window.span))
    square = Image.fromarray(cut_picture(image, shape, around, wide))
    across, down = (scale * window.span / side * wide / around.span for scale in (cosine, sine))
    middle, half = wide / 2, side / 2
    turn = (across, -down, middle - (across - down) * half, down, across, middle - (down + across) * half)
    turned = square.transform((side, side), Image.Transform.AFFINE, turn, Image.Resampling.BILINEAR)
    return np.array(turned)[:, ::-1] if window.mirrored else np.array(turned)
