"""Masks as polygons, for tools that draw outlines. Traced by contourpy."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from contourpy import FillType, contour_generator
from numpy.typing import NDArray

Ring = list[list[float]]  # [x, y] in pixels from the top left corner of the picture, the last point joined to the first


def polygons(mask: NDArray[np.bool_]) -> list[list[Ring]]:
    """Mask [H, W] -> polygons, each a list of rings: its outline, then its holes.

    A pixel belongs to the mask exactly when its centre lies inside an outline and in none of its holes.
    """
    padded = np.pad(mask.astype(np.float32), 1)
    tracer: Any = contour_generator(z=padded, fill_type=FillType.OuterOffset)
    points, offsets = tracer.filled(0.5, 2.0)
    return [
        [_ring(outline[first:last]) for first, last in pairwise(starts)] for outline, starts in zip(points, offsets)
    ]


def _ring(points: NDArray[np.float64]) -> Ring:
    """Corners alone, in the picture's pixels: point (0, 0) of the padded mask is the centre of a pixel one up and one left."""
    corners = points[:-1] - 0.5  # the last one repeats the first; -1 for the padding, + 0.5 for the pixel's centre
    before, after = corners - np.roll(corners, 1, 0), np.roll(corners, -1, 0) - corners
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    return [[float(x), float(y)] for x, y in corners[turns]]
