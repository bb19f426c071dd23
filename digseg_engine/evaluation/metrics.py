"""Counts over a data set and the figures made of them: IoU in both conventions, cIoU, Dice, boundary IoU, false area.

Everything is counted at the pictures' own resolution, pixels marked as ignored left out. Boundary IoU is that of Cheng
et al. 2021 (arXiv 2103.16562): the same quotient over the pixels within 2 % of the diagonal of a mask's own outline.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

BOUNDARY_WIDTH = 0.02  # of the picture's diagonal
COUNTS = ("intersection", "predicted", "truth", "edge_intersection", "edge_union", "pictures", "asked")


@dataclass
class Score:
    """Pixel counts per prompt [K] over a data set, and what is kept per picture."""

    names: list[str]
    exclusive: bool = False  # every labelled pixel belongs to one name; a confusion matrix is kept
    counts: dict[str, NDArray[np.int64]] = field(init=False)
    dice_sum: NDArray[np.float64] = field(init=False)
    confusion: NDArray[np.int64] = field(init=False)  # [K + 1, K + 1] truth x prediction, last = none of the names
    false_area_sum: float = 0.0
    absent_pairs: int = 0
    per_picture: list[float] = field(default_factory=list)  # mean IoU over the prompts that are present, NaN if none is

    def __post_init__(self) -> None:
        k = len(self.names)
        self.counts = {name: np.zeros(k, np.int64) for name in COUNTS}
        self.dice_sum = np.zeros(k)
        self.confusion = np.zeros((k + 1, k + 1) if self.exclusive else (0, 0), np.int64)

    def add(
        self, predicted: NDArray[np.bool_], truth: NDArray[np.bool_], valid: NDArray[np.bool_] | None = None
    ) -> None:
        """One picture: predicted, truth [K, H, W]; valid [H, W] is False where pixels do not count."""
        if valid is not None:
            predicted, truth = predicted & valid, truth & valid
        inside, p, t = ((m).sum((1, 2)) for m in (predicted & truth, predicted, truth))
        edge_inside, edge_union = boundary_counts(predicted, truth)
        present, size = t > 0, truth[0].size if valid is None else max(1, int(valid.sum()))
        added = (inside, p, t, edge_inside, edge_union, present, np.ones_like(present))
        for name, values in zip(COUNTS, added):
            self.counts[name] += values
        self.dice_sum[present] += 2 * inside[present] / (p + t)[present]
        self.false_area_sum += float((p[~present] / size).sum())
        self.absent_pairs += int((~present).sum())
        self.per_picture.append(float((inside / (p + t - inside).clip(1))[present].mean()) if present.any() else np.nan)
        if self.exclusive:
            self._confuse(predicted, truth, valid)

    def _confuse(self, predicted: NDArray[np.bool_], truth: NDArray[np.bool_], valid: NDArray[np.bool_] | None) -> None:
        n = len(self.names) + 1
        rows, columns = (np.where(m.any(0), m.argmax(0), n - 1) for m in (truth, predicted))
        pairs = (rows * n + columns)[slice(None) if valid is None else valid]
        self.confusion += np.bincount(pairs.ravel(), minlength=n * n).reshape(n, n)

    @property
    def _union(self) -> NDArray[np.int64]:
        return self.counts["predicted"] + self.counts["truth"] - self.counts["intersection"]

    def iou(self) -> dict[str, float]:
        """IoU of every name that occurs in the truth."""
        found = self.counts["truth"] > 0
        values = zip(self.names, self.counts["intersection"], self._union, found)
        return {name: float(i / u) for name, i, u, ok in values if ok}

    def miou(self, names: tuple[str, ...] | None = None) -> float:
        """Mean IoU over the names that occur in the truth; NaN when none does."""
        return _mean([iou for name, iou in self.iou().items() if names is None or name in names])

    def miou_counting_absent(self) -> float:
        """Mean IoU where a name that never occurs but was predicted somewhere counts as 0 (the older convention)."""
        alarms = int(((self.counts["truth"] == 0) & (self.counts["predicted"] > 0)).sum())
        return _mean([*self.iou().values(), *[0.0] * alarms])

    def ciou(self) -> float:
        """Cumulative IoU: all intersections over all unions."""
        return float(self.counts["intersection"].sum() / max(1, self._union.sum()))

    def dice(self) -> float:
        """Mean Dice over (picture, prompt) pairs whose prompt is present; absent prompts are judged by `false_area`."""
        return float(self.dice_sum.sum() / max(1, self.counts["pictures"].sum()))

    def boundary_iou(self) -> float:
        """Mean boundary IoU over the names that occur in the truth."""
        found = self.counts["truth"] > 0
        return _mean((self.counts["edge_intersection"][found] / self.counts["edge_union"][found].clip(1)).tolist())

    def false_area(self) -> float:
        """Mean share of the picture marked for a prompt that is not there."""
        return self.false_area_sum / max(1, self.absent_pairs)

    def rows(self) -> list[dict[str, object]]:
        """One line per name: counts and figures, None where a name never occurs."""
        c, lines = self.counts, []
        for k, name in enumerate(self.names):
            t, p, i = (int(c[key][k]) for key in ("truth", "predicted", "intersection"))
            lines.append({
                "name": name, "pictures": int(c["pictures"][k]), "truth_pixels": t, "predicted_pixels": p,
                "iou": round(i / (t + p - i), 5) if t else None,
                "dice": round(float(self.dice_sum[k] / c["pictures"][k]), 5) if t else None,
                "boundary_iou": round(float(c["edge_intersection"][k] / max(1, c["edge_union"][k])), 5) if t else None,
                "precision": round(i / p, 5) if p else None, "recall": round(i / t, 5) if t else None,
            })  # fmt: skip
        return lines

    def best_median_worst(self) -> dict[str, int]:
        """Numbers of three telling pictures; fewer when there are not three."""
        order = [int(i) for i in np.argsort(self.per_picture) if not np.isnan(self.per_picture[i])]
        if not order:
            return {}
        chosen = {"best": order[-1], "median": order[len(order) // 2], "worst": order[0]}
        return {label: i for label, i in chosen.items() if list(chosen.values()).count(i) == 1 or label == "best"}


@dataclass(frozen=True)
class Scores:
    """One test set scored twice from the same logits."""

    together: Score  # the label map of the whole vocabulary, by the test set's rule
    alone: Score  # every prompt's own mask, as if it were the only one asked


def boundary_counts(
    predicted: NDArray[np.bool_], truth: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pixels shared by and in either outline band, per prompt: masks [K, H, W] -> ([K], [K])."""
    inside, union = np.zeros((2, len(truth)), np.int64)
    busy = np.flatnonzero(truth.any((1, 2)) | predicted.any((1, 2)))
    if len(busy):
        p, t = outline_band(predicted[busy]), outline_band(truth[busy])
        inside[busy], union[busy] = (p & t).sum((1, 2)), (p | t).sum((1, 2))
    return inside, union


def outline_band(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of masks [N, H, W] at most 2 % of the diagonal from their outline; the picture's rim is outline too."""
    d = max(1, round(BOUNDARY_WIDTH * float(np.hypot(*masks.shape[-2:]))))
    outside = F.pad(1 - torch.from_numpy(masks).float(), (d,) * 4, value=1.0)
    rows = F.max_pool2d(outside[:, None], (2 * d + 1, 1), stride=1)  # a square window, one axis at a time
    near = F.max_pool2d(rows, (1, 2 * d + 1), stride=1)[:, 0] > 0
    return np.asarray(masks & near.numpy())


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
