"""From low-resolution logits to masks, scores and a label map at the picture's own size, one prompt at a time.

Only one prompt's full-size logits exist at any moment, so memory does not grow with prompts beyond their boolean masks,
and not even by those when they are not kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from digseg_engine.errors import UsageError

Plane = NDArray[np.float32]
Masks = NDArray[np.bool_]
LEAST = 1e-6  # threshold: its logit lies well above that of a prompt that is not there
LABEL_RULES = ("parts", "strongest", "smallest")
INSIDE = 0.9  # share of a mask that must lie in a larger one for it to count as its part
MARGIN = 1e-3  # of a logit: more than enlarging can round
SMALLER = 0.8  # and at most this share of the larger one's area


@dataclass(frozen=True)
class Rules:
    """How logits become an answer.

    threshold: probability from which a pixel belongs to a mask, from a millionth to as much under 1. labels: which of several
    masks a pixel of the label map shows: `strongest`; `smallest`, the mask of the smallest area; or `parts`, the strongest,
    except that a mask lying inside a larger one (a nucleus in its cell) shows there. keep_masks: False leaves the full-size
    masks out of the result, which then makes each anew when asked.
    """

    threshold: float = 0.5
    labels: str = "parts"
    keep_masks: bool = True

    def __post_init__(self) -> None:
        if not LEAST <= self.threshold <= 1 - LEAST:
            raise UsageError(f"threshold is a probability between 0 and 1, got {self.threshold}; 0.5 is the usual one")
        if self.labels not in LABEL_RULES:
            raise UsageError(f"unknown label rule {self.labels!r}; expected one of {', '.join(LABEL_RULES)}")

    @property
    def border(self) -> float:
        """The threshold as a logit."""
        return math.log(self.threshold / (1 - self.threshold))


USUAL = Rules()


@dataclass(frozen=True)
class Labelled:
    """masks [K, H, W] (None when not kept), scores [K], label map [H, W], pixels [K] of each mask, and its box [left, top,
    right, bottom], right and bottom exclusive, None for an empty one."""

    masks: Masks | None
    scores: NDArray[np.float32]
    label_map: NDArray[np.int32]
    pixels: NDArray[np.int64]
    boxes: tuple[list[int] | None, ...]


def label(
    planes: Sequence[Plane], enlarge: Callable[[Plane], Plane], shape: tuple[int, int], rules: Rules = USUAL,
    rivals: Sequence[Plane] = (),
) -> Labelled:  # fmt: skip
    """K logit planes -> masks, scores (mean probability inside each mask) and label map at `shape` (H, W).

    enlarge brings one plane to `shape`. Of equal logits the first prompt wins. rivals: planes of contrast prompts, see
    `floor_of`.
    """
    count, floor = len(planes), floor_of(rivals, enlarge, rules.border)
    masks = np.zeros((count, *shape), np.bool_) if rules.keep_masks else None
    scores, pixels = np.zeros(count, np.float32), np.zeros(count, np.int64)
    boxes: list[list[int] | None] = [None] * count
    best = np.full(shape, floor)  # nothing below it is labelled
    label_map = np.zeros(shape, np.int32)
    some = [k for k, plane in enumerate(planes) if not empty(plane, rules.border)]  # of the others nothing shows
    areas, beats = precedence(planes, some, rules)
    for k in sorted(some, key=lambda k: -areas[k]):  # wholes before their parts
        full = enlarge(planes[k])
        mask = full > floor
        wins = full > best
        if beats[k].any():
            wins |= mask & beats[k][label_map]
        np.copyto(best, full, where=wins)
        np.copyto(label_map, k + 1, where=wins)
        inside = full[mask]
        pixels[k], scores[k], boxes[k] = inside.size, mean_probability(inside), box(mask)
        if masks is not None:
            masks[k] = mask
    return Labelled(masks, scores, label_map, pixels, tuple(boxes))


def label_of_map(label_map: NDArray[np.int32], count: int) -> Labelled:
    """The answer of a label map [H, W] that stands for itself: K masks that do not overlap; scores are unknown, NaN where a mask
    is not empty."""
    pixels = np.bincount(label_map.ravel(), minlength=count + 1)[1:].astype(np.int64)
    boxes = tuple(box(label_map == k + 1) if pixels[k] else None for k in range(count))
    scores = np.where(pixels > 0, np.float32(np.nan), np.float32(0))
    return Labelled(None, scores, label_map, pixels, boxes)


def floor_of(
    rivals: Iterable[Plane], enlarge: Callable[[Plane], Plane], border: float | np.float32
) -> Plane | np.float32:
    """The logit that a pixel must pass to belong to a mask: the border, or where a contrast prompt answers more strongly,
    its logit. One number where there are no contrast prompts."""
    floor: Plane | np.float32 = np.float32(border)
    for rival in rivals:
        floor = np.maximum(floor, enlarge(rival))
    return floor


def precedence(
    planes: Sequence[Plane], some: Sequence[int], rules: Rules
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Areas [K] by which prompts are laid down, largest first, and beats [K, K + 1]: whether prompt k shows over label l
    wherever both masks are set, however strong. Judged on the planes, before they are enlarged; `some`: numbers of those that
    are not empty."""
    count = len(planes)
    beats = np.zeros((count, count + 1), np.bool_)
    if rules.labels == "strongest" or count < 2:
        return np.zeros(count, np.float32), beats
    areas = np.zeros(count, np.float32)
    if not some:
        return areas, beats
    masks = np.stack([_at(planes[k], planes[0].shape) > rules.border for k in some]).reshape(len(some), -1)
    flat = masks.astype(np.float32)
    areas[some] = flat.sum(1)
    if rules.labels == "smallest":
        beats[:, 1:] = areas[:, None] < areas[None]
    else:
        shared, few = flat @ flat.T, areas[some]  # [M, M] cells of those that have any
        inside = (shared >= INSIDE * few[:, None]) & (few[:, None] <= SMALLER * few[None])
        beats[np.ix_(some, [k + 1 for k in some])] = inside
    beats[areas == 0] = False
    return areas, beats


def empty(plane: Plane, border: float) -> bool:
    """Whether a plane's mask is empty at every size: all its logits lie clearly under the border."""
    return bool(plane.max() < border - MARGIN)


def _at(plane: Plane, shape: tuple[int, ...]) -> Plane:
    """The plane at another's resolution, by the nearest cell."""
    if plane.shape == shape:
        return plane
    rows, columns = (np.arange(new) * old // new for new, old in zip(shape, plane.shape))
    return plane[np.ix_(rows, columns)]


def mean_probability(logits: NDArray[np.float32]) -> float:
    """Mean of the sigmoid, 0 for no logits."""
    return float(probability(logits).mean()) if logits.size else 0.0


def probability(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """The sigmoid, without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)), np.float32)


def box(mask: NDArray[np.bool_]) -> list[int] | None:
    """[left, top, right, bottom] in pixels, right and bottom exclusive; None for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
