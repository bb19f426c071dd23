"""One answer against one label map, counted in strips of rows on the device that holds the answer.

Nothing here grows with prompts times pixels but the logits of a strip: 150 classes of a large picture cost little more than
enlarging their logits.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from digseg_engine.evaluation.alarms import Alarms
from digseg_engine.evaluation.answers import Answer
from digseg_engine.evaluation.calibration import Calibration
from digseg_engine.evaluation.metrics import FALSE_PIXELS, Counted
from digseg_engine.evaluation.predictors import Rule, choose_labels

Labels = NDArray[np.int64]
Mask = NDArray[np.bool_]


def count_labels(
    answer: Answer, truth: NDArray[np.integer], valid: Mask | None, rule: Rule, calibration: Calibration
) -> tuple[Labels, Counted]:
    """(label map [H, W] by the rule, counts of every prompt's own mask) of an answer whose truth is a label map [H, W].

    truth: number of the prompt, negative where it is none. `calibration` gets the probability of what each pixel was
    answered with.
    """
    device, count = answer.device, answer.count
    right = torch.from_numpy(truth.astype(np.int64)).to(device)
    known = torch.ones_like(right, dtype=torch.bool) if valid is None else torch.from_numpy(valid).to(device)
    chosen = torch.empty_like(right)
    present = _tally(right[known & (right >= 0)], count)
    alarms = Alarms((present == 0).cpu().numpy(), answer.shape, FALSE_PIXELS)
    predicted, inside = np.zeros(count, np.int64), torch.zeros(count, dtype=torch.long, device=device)
    for rows, logits in answer.strips():
        labels, asked = right[rows], known[rows]
        best, chosen[rows] = choose_labels(logits, rule)
        marked = (logits > 0).cpu().numpy()
        if valid is not None:
            marked &= valid[rows]
        predicted += alarms.look(rows.start, marked)
        there = asked & (labels >= 0)
        own = logits.gather(0, labels.clamp(min=0)[None])[0]
        inside += _tally(labels[there & (own > 0)], count)
        answered = asked & (chosen[rows] >= 0)
        calibration.add(best[answered], (chosen[rows] == labels)[answered])
    t, both = present.cpu().numpy(), inside.cpu().numpy()
    return chosen.cpu().numpy(), Counted(both, predicted, t, alarms.result(), int(known.sum()))


def _tally(labels: Tensor, count: int) -> Tensor:
    return labels.bincount(minlength=count)
