"""False alarms: which masks hold a connected piece of more than so many pixels, neighbours by sides.

Asked for 150 prompts at once, so nothing is labelled mask by mask. A long enough run of pixels in a row, or a full square,
decides a mask at sight; of what is left only the marked pixels are joined, those of all masks in one graph.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Masks = NDArray[np.bool_]
SQUARE = 5  # pixels a side


class Alarms:
    """Looks at the masks of K prompts strip by strip, of those that are `asked` [K]; shape: of the picture."""

    def __init__(self, asked: NDArray[np.bool_], shape: tuple[int, int], least: int) -> None:
        self.open, self.shape, self.least = asked.copy(), shape, least
        self.found = np.zeros(len(asked), bool)
        self.places: list[NDArray[np.int64]] = []

    def look(self, first: int, masks: Masks) -> NDArray[np.int64]:
        """Masks [K, rows, W] from row `first` of the picture on; returns how many pixels each of them has there [K]."""
        counts = np.array([np.count_nonzero(mask) for mask in masks])
        numbers = np.flatnonzero((counts > 0) & self.open)
        clear = np.array([counts[k] > self.least and self._is_clear(masks[k]) for k in numbers], bool)
        self.found[numbers[clear]] = True
        self.open[numbers[clear]] = False
        height, width = self.shape
        for k in numbers[~clear]:
            self.places.append((k * height + first) * width + np.flatnonzero(masks[k]))
        return counts

    def _is_clear(self, mask: NDArray[np.bool_]) -> bool:
        """Whether a mask [rows, W] shows at sight that it holds a large enough piece."""
        rows = mask[:: max(1, SQUARE // 2)]  # a piece worth seeing at sight is in one of them
        if _all_in_a_row(rows, self.least + 1, 1).any():
            return True
        if self.least >= SQUARE * SQUARE:
            return False
        return bool(_all_in_a_row(_all_in_a_row(mask, SQUARE, 0), SQUARE, 1).any())

    def result(self) -> NDArray[np.bool_]:
        """Which of the prompts [K] have such a piece."""
        places = np.concatenate([np.zeros(0, np.int64), *self.places])
        places = np.sort(places[self.open[places // (self.shape[0] * self.shape[1])]])
        self.found[large_pieces(places, self.shape, self.least)] = True
        return self.found


def label_alarms(labels: NDArray[np.integer], asked: NDArray[np.bool_], least: int) -> NDArray[np.bool_]:
    """As `Alarms`, for a label map [H, W] with a prompt's number at every pixel, negative where there is none."""
    padded = np.append(asked, False)  # -1, none, is not asked
    numbers = np.where(padded[np.maximum(labels, -1)], labels, -1).astype(np.int64)
    found = np.zeros(len(asked), bool)
    found[_long_runs(numbers, least)] = True
    y, x = np.nonzero(padded[numbers] & ~np.append(found, False)[numbers])
    height, width = labels.shape
    places = np.sort((numbers[y, x] * height + y) * width + x)
    found[large_pieces(places, (height, width), least)] = True
    return found


def large_pieces(places: NDArray[np.int64], shape: tuple[int, int], least: int) -> NDArray[np.int64]:
    """Numbers of the masks with a piece of more than `least` pixels; places: (number * H + y) * W + x, in order."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    height, width = shape
    count = len(places)
    beside = np.flatnonzero((places[1:] == places[:-1] + 1) & (places[1:] % width != 0))
    below = np.searchsorted(places, places + width)
    inside = (below < count) & (places // width % height < height - 1)
    above = (
        np.flatnonzero(inside & (places[np.minimum(below, max(0, count - 1))] == places + width)) if count else beside
    )
    rows, columns = np.concatenate((beside, above)), np.concatenate((beside + 1, below[above]))
    graph = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(count, count))
    _, pieces = connected_components(graph, directed=False) if count else (0, np.zeros(0, np.int64))
    large = np.bincount(pieces)[pieces] > least if count else np.zeros(0, bool)
    return np.unique(places[large] // (height * width))


def _long_runs(numbers: NDArray[np.int64], least: int) -> NDArray[np.int64]:
    """Numbers that stand more than `least` times in a row in [H, W], those below 0 left out."""
    width = numbers.shape[1]
    flat = numbers.ravel()
    new = np.flatnonzero(np.diff(flat) != 0) + 1
    starts = np.unique(np.concatenate((np.arange(0, flat.size, width), new)))
    lengths = np.diff(np.append(starts, flat.size))
    long = flat[starts[lengths > least]]
    return np.unique(long[long >= 0])


def _all_in_a_row(mask: NDArray[np.bool_], length: int, axis: int) -> NDArray[np.bool_]:
    """Where `length` pixels along an axis, from here on, are all set."""
    span = 1
    while span < length:
        step = min(span, length - span)
        if mask.shape[axis] <= step:
            return mask[:0]
        mask = (mask[:-step] & mask[step:]) if axis == 0 else (mask[:, :-step] & mask[:, step:])
        span += step
    return mask
