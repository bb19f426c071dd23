"""Outline bands of masks, for boundary IoU, and connected pieces, for false alarms.

Boundary IoU is that of Cheng et al. 2021 (arXiv 2103.16562): the quotient of IoU over the pixels within 2 % of the
diagonal of a mask's own outline. The band is the mask without its erosion by a square; the erosion joins windows of 1, 2,
4, ... pixels along one axis at a time, so its cost per pixel hardly grows with the band's width.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
BOUNDARY_WIDTH = 0.02  # of the picture's diagonal


def band_counts(predicted: Mask, truth: Mask, valid: Mask | None = None) -> tuple[int, int]:
    """Pixels in both outline bands and in either, of two masks [H, W]."""
    p, t = outline_band(predicted, valid), outline_band(truth, valid)
    return int(np.count_nonzero(p & t)), int(np.count_nonzero(p | t))


def outline_band(mask: Mask, valid: Mask | None = None) -> Mask:
    """The pixels of a mask [H, W] at most 2 % of the diagonal from its outline; the picture's rim is outline too.

    Where nobody knows the label (`valid` False) there is no outline: a mask does not end there, it is not known.
    """
    d = max(1, round(BOUNDARY_WIDTH * float(np.hypot(*mask.shape))))
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


def _whole(solid: Mask, d: int) -> Mask:
    """Where the 2 d + 1 pixels around along the first axis are all set; beyond the edges nothing is."""
    width, span = 2 * d + 1, 1
    runs = np.pad(solid, ((d, d), (0, 0)))
    while 2 * span <= width:
        runs = runs[:-span] & runs[span:]
        span *= 2
    return runs[: len(runs) - (width - span)] & runs[width - span :]


def largest_piece(mask: Mask) -> int:
    """Pixels of the largest connected piece of a mask [H, W], neighbours by sides."""
    from scipy import ndimage

    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return 0
    pieces, count = ndimage.label(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    return int(np.bincount(pieces.ravel(), minlength=count + 1)[1:].max())
