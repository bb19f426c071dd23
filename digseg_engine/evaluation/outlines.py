"""Outline bands of masks, for boundary IoU.

Boundary IoU is that of Cheng et al. 2021 (arXiv 2103.16562): the quotient of IoU over the pixels within 2 % of the
diagonal of a mask's own outline. The band is the mask without its erosion by a square; the erosion joins windows of 1, 2,
4, ... pixels along one axis at a time, so its cost per pixel hardly grows with the band's width.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Labels = NDArray[np.int32]
Choose = Callable[[Labels, Labels], Labels]  # elementwise minimum or maximum
BOUNDARY_WIDTH = 0.02  # of the picture's diagonal


def band_counts(predicted: Mask, truth: Mask, valid: Mask | None = None) -> tuple[int, int]:
    """Pixels in both outline bands and in either, of two masks [H, W]."""
    p, t = outline_band(predicted, valid), outline_band(truth, valid)
    return int(np.count_nonzero(p & t)), int(np.count_nonzero(p | t))


def outline_band(mask: Mask, valid: Mask | None = None) -> Mask:
    """The pixels of a mask [H, W] at most 2 % of the diagonal from its outline; the picture's rim is outline too.

    Where nobody knows the label (`valid` False) there is no outline: a mask does not end there, it is not known.
    """
    d = _width(mask.shape)
    band = np.zeros_like(mask)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows):
        around = tuple(slice(max(0, int(at[0]) - d), int(at[-1]) + d + 1) for at in (rows, columns))
        piece = mask[around]
        solid = piece if valid is None else piece | ~valid[around]
        band[around] = piece & ~_whole(_whole(solid, d).T, d).T
        if valid is not None:
            band &= valid
    return band


def _width(shape: tuple[int, ...]) -> int:
    return max(1, round(BOUNDARY_WIDTH * math.hypot(*shape)))


def _whole(solid: Mask, d: int) -> Mask:
    """Where the 2 d + 1 pixels around along the first axis are all set; beyond the edges nothing is."""
    width, span = 2 * d + 1, 1
    runs = np.pad(solid, ((d, d), (0, 0)))
    while 2 * span <= width:
        runs = runs[:-span] & runs[span:]
        span *= 2
    return runs[: len(runs) - (width - span)] & runs[width - span :]


def label_bands(labels: NDArray[np.integer], valid: Mask | None = None) -> Mask:
    """Where a pixel of a label map [H, W] lies in its own label's outline band; all labels at once.

    The square around it holds another label or reaches beyond the picture: the smallest or largest label in it is another.
    """
    d = _width(labels.shape)
    low, high = labels.astype(np.int32), labels.astype(np.int32)
    limits = np.iinfo(np.int32)
    if valid is not None:
        low[~valid], high[~valid] = limits.max, limits.min  # an unknown pixel is of any label
    least = _extreme(_extreme(low, d, np.minimum).T, d, np.minimum).T
    most = _extreme(_extreme(high, d, np.maximum).T, d, np.maximum).T
    band: Mask = (least != labels) | (most != labels)
    return band if valid is None else band & valid


def label_band_counts(
    predicted: NDArray[np.integer], truth: NDArray[np.integer], count: int, valid: Mask | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`band_counts` of every label 0..count-1 of two label maps [H, W]: pixels in both bands [count], in either [count]."""
    p, t = label_bands(predicted, valid), label_bands(truth, valid)
    inside = _tally(truth[p & t & (predicted == truth)], count)
    return inside, _tally(predicted[p], count) + _tally(truth[t], count) - inside


def _tally(labels: NDArray[np.integer], count: int) -> NDArray[np.int64]:
    return np.bincount(labels[labels >= 0].astype(np.int64), minlength=count)[:count]


def _extreme(values: Labels, d: int, choose: Choose) -> Labels:
    """Smallest or largest of the 2 d + 1 values around along the first axis; beyond the edges everything is smaller."""
    width, span = 2 * d + 1, 1
    runs = np.pad(values, ((d, d), (0, 0)), constant_values=np.iinfo(np.int32).min)
    while 2 * span <= width:
        runs = choose(runs[:-span], runs[span:])
        span *= 2
    return np.asarray(choose(runs[: len(runs) - (width - span)], runs[width - span :]))
