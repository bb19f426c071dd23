"""The plain way to find pieces, that the fast one is held against."""

import numpy as np
from scipy import ndimage


def largest_piece(mask):
    """Pixels of the largest connected piece of a mask [H, W], neighbours by sides."""
    pieces, count = ndimage.label(mask)
    return int(np.bincount(pieces.ravel(), minlength=count + 1)[1:].max()) if count else 0
