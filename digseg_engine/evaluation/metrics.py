"""Counts over a data set and the figures made of them: IoU in both conventions, cIoU, Dice, boundary IoU, false alarms,
presence, and presence and masks in one figure (cgF1).

Everything is counted at the pictures' own resolution, pixels marked as ignored left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from digseg_engine.evaluation.alarms import Alarms, label_alarms
from digseg_engine.evaluation.calibration import Calibration
from digseg_engine.evaluation.outlines import band_counts, label_band_counts

FALSE_PIXELS = 20  # a false alarm is one connected piece of more pixels, for a prompt that is not there
MATCHES = np.arange(0.5, 1.0, 0.05).round(2)  # from these IoUs on a mask is the right one (COCO, SAM 3)
COUNTS = ("intersection", "predicted", "truth", "edge_intersection", "edge_union", "pictures", "asked")


@dataclass(frozen=True)
class Counted:
    """Pixels of one picture per prompt [K]: in mask and truth, in the mask, in the truth; which masks [K] are false alarms;
    and the pixels that count."""

    inside: NDArray[np.int64]
    predicted: NDArray[np.int64]
    truth: NDArray[np.int64]
    alarms: NDArray[np.bool_]
    pixels: int


@dataclass
class Score:
    """Pixel counts per prompt [K] over a data set, and what is kept per picture."""

    names: list[str]
    exclusive: bool = False  # every labelled pixel belongs to one name; a confusion matrix is kept
    outlines: bool = True  # boundary IoU is wanted
    counts: dict[str, NDArray[np.int64]] = field(init=False)
    dice_sum: NDArray[np.float64] = field(init=False)
    confusion: NDArray[np.int64] = field(init=False)  # [K + 1, K + 1] truth x prediction, last = none of the names
    presence: NDArray[np.int64] = field(
        init=False
    )  # [2, 2] (picture, prompt) pairs, truth x prediction: absent, present
    matched: NDArray[np.int64] = field(init=False)  # present pairs whose mask reaches each IoU of MATCHES
    marked: int = 0  # present pairs with any mask
    readout: bool = False  # whether a presence readout said what is there; else a mask that is not empty does
    false_area_sum: float = 0.0
    absent_pairs: int = 0
    false_pairs: int = 0  # absent prompts answered with a piece of more than FALSE_PIXELS
    false_pictures: int = 0  # pictures with any of those
    per_picture: list[float] = field(default_factory=list)  # mean IoU over the prompts that are present, NaN if none is
    calibration: Calibration = field(default_factory=Calibration)

    def __post_init__(self) -> None:
        k = len(self.names)
        self.counts = {name: np.zeros(k, np.int64) for name in COUNTS}
        self.dice_sum = np.zeros(k)
        self.confusion = np.zeros((k + 1, k + 1) if self.exclusive else (0, 0), np.int64)
        self.presence = np.zeros((2, 2), np.int64)
        self.matched = np.zeros(len(MATCHES), np.int64)

    def add(
        self, predicted: NDArray[np.bool_], truth: NDArray[np.bool_], valid: NDArray[np.bool_] | None = None,
        said: NDArray[np.bool_] | None = None,
    ) -> None:  # fmt: skip
        """One picture: predicted, truth [K, H, W]; valid [H, W] is False where pixels do not count; said [K]: what the model's
        presence readout holds to be there."""
        if self.exclusive:
            return self.add_labels(labels_of(predicted), labels_of(truth), valid, said)
        known = np.ones(truth.shape[1:], bool) if valid is None else valid
        inside, p, t = np.zeros((3, len(self.names)), np.int64)
        for k, (mask, right) in enumerate(zip(predicted, truth)):
            mask, right = mask & known, right & known
            p[k], t[k] = np.count_nonzero(mask), np.count_nonzero(right)
            inside[k] = np.count_nonzero(mask & right) if p[k] and t[k] else 0
        self._tally(inside, p, t, int(known.sum()), said)
        alarms = Alarms(t == 0, known.shape, FALSE_PIXELS)
        alarms.look(0, predicted & known)
        self._count_alarms(alarms.result())
        if self.outlines:
            for k in np.flatnonzero((p > 0) | (t > 0)).tolist():
                both, either = band_counts(predicted[k], truth[k], valid)
                self.counts["edge_intersection"][k] += both
                self.counts["edge_union"][k] += either

    def add_labels(
        self, predicted: NDArray[np.integer], truth: NDArray[np.integer], valid: NDArray[np.bool_] | None = None,
        said: NDArray[np.bool_] | None = None,
    ) -> None:  # fmt: skip
        """One picture of exclusive labels [H, W]: numbers of the names, negative where none of them is."""
        n = len(self.names) + 1
        rows, columns = (np.where(ids < 0, n - 1, ids).astype(np.int64) for ids in (truth, predicted))
        pairs = (rows * n + columns)[slice(None) if valid is None else valid]
        table = np.bincount(pairs.ravel(), minlength=n * n).reshape(n, n)
        self.confusion += table
        p, t = table.sum(0)[:-1], table.sum(1)[:-1]
        self._tally(table.diagonal()[:-1], p, t, int(pairs.size), said)
        shown = predicted if valid is None else np.where(valid, predicted, -1)
        self._count_alarms(label_alarms(shown, t == 0, FALSE_PIXELS))
        if self.outlines:
            both, either = label_band_counts(predicted, truth, n - 1, valid)
            self.counts["edge_intersection"] += both
            self.counts["edge_union"] += either

    def add_counts(self, counted: Counted, said: NDArray[np.bool_] | None = None) -> None:
        """One picture that was counted elsewhere."""
        self._tally(counted.inside, counted.predicted, counted.truth, counted.pixels, said)
        self._count_alarms(counted.alarms)

    def _tally(
        self, inside: NDArray[np.int64], p: NDArray[np.int64], t: NDArray[np.int64], size: int,
        said: NDArray[np.bool_] | None,
    ) -> None:  # fmt: skip
        """Pixels of one picture [K]: of both, predicted, true; size: of all that count; said: what the readout says is there."""
        present = t > 0
        asked = np.ones(len(t), np.int64)
        added = {
            "intersection": inside,
            "predicted": p,
            "truth": t,
            "pictures": present.astype(np.int64),
            "asked": asked,
        }
        for name, values in added.items():
            self.counts[name] += values
        self.readout = self.readout or said is not None
        self.presence += np.bincount(2 * present + (p > 0 if said is None else said), minlength=4).reshape(2, 2)
        ious = (inside / (p + t - inside).clip(1))[present]
        self.matched += (ious[:, None] >= MATCHES).sum(0)
        self.marked += int(np.count_nonzero(p[present]))
        self.dice_sum[present] += 2 * inside[present] / (p + t)[present]
        self.false_area_sum += float((p[~present] / max(1, size)).sum())
        self.absent_pairs += int((~present).sum())
        self.per_picture.append(float(ious.mean()) if present.any() else np.nan)

    def _count_alarms(self, alarms: NDArray[np.bool_]) -> None:
        """One picture: which prompts that are not there were answered with a false alarm."""
        count = int(np.count_nonzero(alarms))
        self.false_pairs += count
        self.false_pictures += count > 0

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
        return int(self.counts["intersection"].sum()) / max(1, int(self._union.sum()))

    def dice(self) -> float:
        """Mean Dice over (picture, prompt) pairs whose prompt is present; absent prompts are judged by `false_area`."""
        return float(self.dice_sum.sum()) / max(1, int(self.counts["pictures"].sum()))

    def picture_iou(self) -> float:
        """Mean over pictures of the mean IoU of the prompts that are there; pictures without any are left out."""
        return _mean([iou for iou in self.per_picture if not np.isnan(iou)])

    def thresholded_jaccard(self, least: float = 0.65) -> float:
        """`picture_iou` where a picture below `least` counts as 0 (ISIC 2018)."""
        return _mean([iou if iou >= least else 0.0 for iou in self.per_picture if not np.isnan(iou)])

    def boundary_iou(self) -> float:
        """Mean boundary IoU over the names that occur in the truth; NaN where outlines were not wanted."""
        if not self.outlines:
            return float("nan")
        found = self.counts["truth"] > 0
        return _mean((self.counts["edge_intersection"][found] / self.counts["edge_union"][found].clip(1)).tolist())

    def false_area(self) -> float:
        """Mean share of the picture marked for a prompt that is not there."""
        return self.false_area_sum / max(1, self.absent_pairs)

    def false_rate(self) -> float:
        """Share of the (picture, prompt) pairs whose prompt is not there that are answered with a false alarm."""
        return self.false_pairs / max(1, self.absent_pairs)

    def false_picture_rate(self) -> float:
        """Share of the pictures with at least one false alarm."""
        return self.false_pictures / max(1, len(self.per_picture))

    def presence_mcc(self) -> float:
        """Matthews correlation coefficient of presence, see `matthews`."""
        return matthews(self.presence)

    def presence_precision(self) -> float:
        """Share of what was held to be there that is; NaN where nothing was."""
        return _share(self.presence[1, 1], self.presence[:, 1].sum())

    def presence_recall(self) -> float:
        """Share of what is there that was held to be; NaN where nothing is."""
        return _share(self.presence[1, 1], self.presence[1].sum())

    def pm_f1(self) -> float:
        """Positive micro F1 of SAM 3 (Meta 2025): over the (picture, prompt) pairs whose prompt is there, a mask is right from
        an IoU on; the F1 of all together, mean over the IoUs of MATCHES. A prompt has one mask here, of everything it names."""
        return float(np.mean([_share(2 * right, self.marked + self.presence[1].sum()) for right in self.matched]))

    def cg_f1(self) -> float:
        """Classification-gated F1 of SAM 3: 100 x pmF1 x presence MCC."""
        return 100 * self.pm_f1() * self.presence_mcc()

    def rows(self) -> list[dict[str, object]]:
        """One line per name: counts and figures, None where a name never occurs."""
        counts, lines = self.counts, []
        for k, name in enumerate(self.names):
            t, p, i = (int(counts[key][k]) for key in ("truth", "predicted", "intersection"))
            lines.append({
                "name": name, "pictures": int(counts["pictures"][k]), "truth_pixels": t, "predicted_pixels": p,
                "iou": round(i / (t + p - i), 5) if t else None,
                "dice": round(float(self.dice_sum[k] / counts["pictures"][k]), 5) if t else None,
                "boundary_iou": round(float(counts["edge_intersection"][k] / max(1, counts["edge_union"][k])), 5) if t else None,
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


def labels_of(masks: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Exclusive masks [K, H, W] -> number of the mask at every pixel, -1 where none is. [H, W]."""
    labels = np.full(masks.shape[1:], -1, np.int64)
    for k, mask in enumerate(masks):
        labels[mask] = k
    return labels


def matthews(table: NDArray[np.int64]) -> float:
    """Matthews correlation coefficient (-1..1) of a table [2, 2] of truth x prediction, false first (Matthews 1975); NaN
    where truth or prediction know one answer only. Presence: a prompt is in a picture if it has a pixel that counts, and is
    predicted if the model's readout says so, or where there is none its mask has one."""
    (tn, fp), (fn, tp) = table.astype(float).tolist()
    margins = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return float((tp * tn - fp * fn) / np.sqrt(margins)) if margins else float("nan")


def _share(part: np.integer, whole: np.integer) -> float:
    return float(part / whole) if whole else float("nan")


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
