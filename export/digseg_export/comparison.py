"""How far answers are from PyTorch's, in numbers and in masks, and how far they may be.

A graph that is close in norm but flips masks is wrong, and so is the reverse. Answers are tallied one by one, so that encodings
of many pictures need not be held.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digseg_engine.errors import VerificationError
from digseg_engine.precisions import Limits
from digseg_engine.runtime.choice import pair_iou

Array = NDArray[Any]


@dataclass(frozen=True)
class Check:
    """One comparison with PyTorch float32. `iou` is the mean over the (picture, prompt) pairs in which one of the two masks
    holds something, None when there is none: agreement on nothing says nothing. `pairs` counts them, `empty` the others."""

    stage: str
    graph: str
    max_error: float
    mean_error: float
    relative: float
    iou: float | None = None
    worst_iou: float | None = None
    pairs: int = 0
    label_agreement: float | None = None  # share of pixels whose best prompt (or background) is the same
    empty: int = 0


@dataclass
class Tally:
    """Errors over any number of answers of one stage. masks: answers are logits [B, K, h, w], whose masks are compared too."""

    masks: bool = True
    count: int = 0
    largest: float = 0.0
    error: float = 0.0  # sum of |difference|
    lost: float = 0.0  # sum of its squares
    size: float = 0.0  # sum of squares of the reference
    ious: list[Array] = field(default_factory=list)
    telling: list[Array] = field(default_factory=list)  # where one of the two masks holds something
    same: list[Array] = field(default_factory=list)  # share of pixels with the same label, of every picture

    def add(self, want: Array, got: Array) -> None:
        """One answer of PyTorch and of the form."""
        reference = want.astype(np.float64)
        gap = np.abs(got.astype(np.float64) - reference)
        self.count += gap.size
        self.largest = float(np.maximum(self.largest, gap.max()))  # NaN stays
        self.error, self.lost = self.error + float(gap.sum()), self.lost + float((gap**2).sum())
        self.size += float((reference**2).sum())
        if self.masks:
            self.ious.append(pair_iou(want > 0, got > 0))
            self.telling.append(((want > 0) | (got > 0)).any((-2, -1)).ravel())
            self.same.append((labels(want) == labels(got)).mean((-2, -1)))

    def check(self, stage: str, graph: str) -> Check:
        """What was found, under the names of a report."""
        relative = float(np.sqrt(self.lost)) / max(float(np.sqrt(self.size)), 1e-12)
        numbers = (stage, graph, self.largest, self.error / self.count, relative)
        if not self.masks:
            return Check(*numbers)
        telling = np.concatenate(self.telling)
        ious, empty = np.concatenate(self.ious)[telling], int((~telling).sum())
        mean, worst = (float(ious.mean()), float(ious.min())) if len(ious) else (None, None)
        return Check(*numbers, mean, worst, len(ious), float(np.concatenate(self.same).mean()), empty)


def compare(stage: str, graph: str, want: Array, got: Array, masks: bool = True) -> Check:
    """One answer of PyTorch and of a graph."""
    tally = Tally(masks)
    tally.add(want, got)
    return tally.check(stage, graph)


def labels(logits: Array) -> NDArray[np.int64]:
    """logits [B, K, h, w] -> 1 + the index of the best prompt where any is positive, else 0; [B, h, w]."""
    return np.where((logits > 0).any(1), logits.argmax(1) + 1, 0)


class CheckError(VerificationError):
    """A check over its limits; carries the check, so that the bisect knows which graph to search."""

    def __init__(self, message: str, check: Check) -> None:
        super().__init__(message)
        self.check = check


def hold_to_limits(check: Check, limits: Limits) -> None:
    """Raises CheckError when a check is over its limits (or not finite)."""
    where, end = f"{check.stage} ({check.graph})", "nothing was published"
    if not np.isfinite(check.relative):
        raise CheckError(f"{where} gives NaN or infinity; expected finite numbers; {end}", check)
    if check.relative > limits.relative:
        raise CheckError(f"{where} differs from PyTorch by {check.relative:.2e} relative, at most "
                      f"{limits.relative:g} allowed (--rtol); {end}", check)  # fmt: skip
    if limits.absolute is not None and check.max_error > limits.absolute:
        raise CheckError(f"{where} differs from PyTorch by {check.max_error:.2e} at one place, at most "
                      f"{limits.absolute:g} allowed (--atol); {end}", check)  # fmt: skip
    if check.iou is not None and check.iou < limits.iou:
        raise CheckError(f"{where} has mask IoU {check.iou:.4f} with PyTorch, at least "
                      f"{limits.iou} expected (--min-iou); {end}", check)  # fmt: skip
