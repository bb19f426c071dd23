"""Whether probabilities mean what they say: expected calibration error over pixels (Guo et al. 2017, arXiv 1706.04599)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

BINS = 20  # of equal width, 0 to 1


@dataclass
class Calibration:
    """Pixels by the probability they were answered with [BINS]: how many, the sum of it, how many were right."""

    pixels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    promised: NDArray[np.float64] = field(default_factory=lambda: np.zeros(BINS))
    right: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(self, logits: Tensor, right: Tensor) -> None:
        """Logits [N] of what was answered, and whether it was right [N]."""
        probability = logits.sigmoid().nan_to_num()  # a broken model is scored, not fallen over
        place = (probability * BINS).long().clamp(max=BINS - 1)
        self.pixels += place.bincount(minlength=BINS).cpu().numpy()
        self.promised += place.bincount(probability, BINS).cpu().numpy()
        self.right += place[right].bincount(minlength=BINS).cpu().numpy()

    def error(self) -> float:
        """Mean distance of promised and measured share of right pixels, weighted by pixels; NaN without any."""
        total = int(self.pixels.sum())
        return float(np.abs(self.promised - self.right).sum() / total) if total else float("nan")

    def rows(self) -> list[dict[str, float]]:
        """One line per bin that holds pixels: their share, the mean probability, the share that is right."""
        total = max(1, int(self.pixels.sum()))
        return [
            {"share": n / total, "probability": p / n, "right": r / n}
            for n, p, r in zip(self.pixels.tolist(), self.promised.tolist(), self.right.tolist())
            if n
        ]
