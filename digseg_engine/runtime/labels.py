"""From low-resolution logits to masks, scores and a label map at the picture's own size, one prompt at a time.

Only one prompt's full-size logits exist at any moment, so memory does not grow with prompts beyond their boolean masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]
Masks = NDArray[np.bool_]


def label(
    planes: Sequence[Plane], enlarge: Callable[[Plane], Plane], shape: tuple[int, int]
) -> tuple[Masks, NDArray[np.float32], NDArray[np.int32]]:
    """K logit planes -> masks [K, H, W], scores [K] (mean probability inside each mask), label map [H, W].

    enlarge brings one plane to `shape` (H, W). Of equal logits the first prompt wins.
    """
    masks = np.zeros((len(planes), *shape), np.bool_)
    scores = np.zeros(len(planes), np.float32)
    best = np.zeros(shape, np.float32)  # 0 is the decision border: nothing below it is labelled
    label_map = np.zeros(shape, np.int32)
    for k, plane in enumerate(planes):
        full = enlarge(plane)
        masks[k] = full > 0
        wins = full > best
        best[wins] = full[wins]
        label_map[wins] = k + 1
        scores[k] = mean_probability(full[masks[k]])
    return masks, scores, label_map


def mean_probability(logits: NDArray[np.float32]) -> float:
    """Mean of the sigmoid, 0 for no logits."""
    return float((1 / (1 + np.exp(-logits))).mean()) if logits.size else 0.0
