"""Charts of a report: what is taken for what (confusion), and whether probabilities mean what they say (reliability)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from digseg_engine.evaluation.metrics import Score, Scores
from digseg_engine.files import replacing

NAMED = 40  # classes whose names fit beside a confusion matrix
NONE = "none"


def draw_confusion(scores: Mapping[str, Scores], path: Path) -> bool:
    """One matrix per test set of exclusive labels, every row divided by its sum; False when there is no such set."""
    shown = {name: outcome.together for name, outcome in scores.items() if outcome.together.exclusive}
    if not shown:
        return False
    figure, axes = _figure(len(shown), side=6.0)
    for axis, (name, score) in zip(axes, shown.items()):
        share, names = row_shares(score)
        axis.imshow(share, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        axis.set(title=name, xlabel="answered", ylabel="truth")
        if len(names) <= NAMED:
            axis.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
            axis.set_yticks(range(len(names)), names, fontsize=6)
        if len(names) <= 10:
            for row, column in np.ndindex(share.shape):
                colour = "white" if share[row, column] > 0.5 else "black"
                axis.text(column, row, f"{share[row, column]:.2f}", ha="center", va="center", fontsize=6, color=colour)
    _save(figure, path)
    return True


def row_shares(score: Score) -> tuple[Any, list[str]]:
    """Share of the pixels of every true class [n] that was answered with each [n], for the classes that occur or were
    answered; "none" is a pixel of none of the names."""
    matrix = score.confusion
    used = np.flatnonzero((matrix.sum(0) + matrix.sum(1)) > 0)
    names = [*score.names, NONE]
    part = matrix[np.ix_(used, used)].astype(float)
    return part / part.sum(1, keepdims=True).clip(1), [names[k] for k in used]


def draw_calibration(scores: Mapping[str, Scores], path: Path) -> bool:
    """Measured share of right pixels over the probability they were answered with; False when no set has any."""
    shown = {name: outcome.together.calibration for name, outcome in scores.items()}
    shown = {name: one for name, one in shown.items() if not math.isnan(one.error())}
    if not shown:
        return False
    figure, (axis,) = _figure(1, side=5.0)
    axis.plot((0, 1), (0, 1), color="grey", linewidth=1, linestyle="--")
    for name, calibration in shown.items():
        rows = calibration.rows()
        points = [row["probability"] for row in rows], [row["right"] for row in rows]
        axis.plot(*points, marker="o", markersize=3, label=f"{name}, error {calibration.error():.3f}")
    axis.set(xlabel="probability of the answer", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1))
    axis.legend(fontsize=7)
    _save(figure, path)
    return True


def _figure(count: int, side: float) -> tuple[Any, list[Any]]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = min(count, 3)
    rows = math.ceil(count / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(columns * side, rows * side), squeeze=False)
    for axis in axes.flat[count:]:
        axis.set_axis_off()
    return figure, list(axes.flat)


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot as plt

    figure.tight_layout()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")
    plt.close(figure)
