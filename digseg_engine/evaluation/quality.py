"""What the parts of a checkpoint reach on the same masks: the figures of its `quality.json` (see `model.quality`).

Every part answers a few prompts that hold of a few pictures, and IoU is counted per mask as `digseg eval` counts it: at the
picture's own pixels, those that do not count left out. For a mask the reference's U-Net runs 15 times from noise (1 + 2 + 4 + 8
steps) and 14 times to refine (twice 1 + 2 + 4), whatever was trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from digseg_engine.data.wordings import encode_text
from digseg_engine.evaluation.answers import Answer, View
from digseg_engine.evaluation.predictors import reference_logits, student_logits
from digseg_engine.evaluation.protocols import Samples
from digseg_engine.images import Frame, fit
from digseg_engine.model.autoencoder import decode_mask, encode_mask
from digseg_engine.model.devices import device_of
from digseg_engine.model.pretrained import Checkpoint
from digseg_engine.model.quality import Figures
from digseg_engine.model.refine import Refiner

REFERENCE_STEPS, REFINE_STEPS = (1, 2, 4, 8), (1, 2, 4)
PROMPTS = 2  # asked about a picture
UNSURE = 1 / 3000  # a true mask is told to the refiner as logits of -8 to 8
Rows = dict[str, list[float]]  # "student", "reference@4", ... -> IoU of every mask


@dataclass(frozen=True)
class Case:
    """One picture and what is in it."""

    image: NDArray[np.uint8]  # [H, W, 3]
    prompts: list[str]  # K, all of which hold
    truth: NDArray[np.bool_]  # [K, H, W], none of them empty
    valid: NDArray[np.bool_] | None = None  # [H, W], False where pixels do not count
    seed: int = 0  # of the noise that refinement begins with
    source: str = ""  # name of the test set


def cases_of(sets: Sequence[Samples], count: int, prompts: int = PROMPTS) -> Iterator[Case]:
    """At most `count` pictures, one of each set in turn, with at most so many prompts each; those with none are left out."""
    turns = ((samples, n) for n in range(max(map(len, sets))) for samples in sets if n < len(samples))
    found = (_case(samples, n, prompts) for samples, n in turns)
    return islice((case for case in found if case is not None), count)


def _case(samples: Samples, n: int, most: int) -> Case | None:
    """Picture `n` with a random choice of what is in it, the same one every time; None where nothing is."""
    sample = samples[n]
    counted = slice(None) if sample.valid is None else sample.valid
    if sample.labels is None:
        numbers = np.flatnonzero([mask[counted].any() for mask in sample.truth])
    else:
        labels = np.unique(sample.labels[counted])
        numbers = labels[labels >= 0].astype(np.intp)
    if not len(numbers):
        return None
    chosen = np.sort(np.random.default_rng(n).permutation(numbers)[:most])
    truth = sample.truth[chosen] if sample.labels is None else sample.labels == chosen[:, None, None]
    texts = [samples.queries[int(k)].text for k in chosen]
    return Case(sample.image, texts, np.asarray(truth), sample.valid, n, samples.name)


def measure(checkpoint: Checkpoint, cases: Iterable[Case], tick: Callable[[int], object] = lambda done: None) -> Rows:
    """IoU of every mask by part and steps, at the checkpoint's picture size, on the device where its networks are."""
    rows: Rows = {}
    refiner = Refiner(checkpoint, device_of(checkpoint.reference), copied=False)
    for case in cases:
        canvas = fit(case.image, checkpoint.config.image_size, checkpoint.stride)
        for name, planes in _answers(checkpoint, refiner, torch.from_numpy(canvas.pixels), canvas.frame, case):
            rows.setdefault(name, []).extend(_ious(planes, canvas.frame, case))
        tick(1)
    return rows


@torch.no_grad()
def _answers(c: Checkpoint, refiner: Refiner, pixels: Tensor, frame: Frame, case: Case) -> Iterator[tuple[str, Tensor]]:
    """(name, logits [K, h', w'] on the canvas) of every part; pixels [1, 3, H, W]."""
    pixels = pixels.to(refiner.device)
    ids, mask = (torch.from_numpy(array).to(refiner.device) for array in c.tokenizer.encode(case.prompts))
    text = c.student.fold_text(*encode_text(c.text_encoder, c.tokenizer, case.prompts))
    student = student_logits(c, pixels, text)[0]
    yield "student", student
    for n in REFERENCE_STEPS:
        yield f"reference@{n}", reference_logits(c, pixels, case.prompts, n, n > 1)
    truth = torch.from_numpy(np.stack([_on_canvas(plane, frame) for plane in case.truth])).to(pixels)
    for name, start in (("refine_student", student.float()), ("refine_truth", torch.logit(truth, UNSURE))):
        for n in REFINE_STEPS:
            yield f"{name}@{n}", refiner.refine(pixels, ids, mask, start, n, case.seed)
    yield "codec", decode_mask(c.vae, encode_mask(c.vae, truth))


def _on_canvas(mask: NDArray[np.bool_], frame: Frame) -> NDArray[np.float32]:
    """A mask of the picture as the model's pixels see it: 0..1, resized and padded as `images.fit` does it."""
    (height, width), (rows, columns) = frame.content, frame.working
    plane: Any = mask.astype(np.float32)
    if plane.shape != (height, width):
        plane = np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR))
    return np.pad(plane, ((0, rows - height), (0, columns - width)), mode="edge").clip(0, 1)


def _ious(planes: Tensor, frame: Frame, case: Case) -> list[float]:
    found = Answer(frame.original, (View.of_frame(planes.float(), frame),)).masks()
    known = np.ones(frame.original, bool) if case.valid is None else case.valid
    return [float((got & want & known).sum() / ((got | want) & known).sum()) for got, want in zip(found, case.truth)]


def means(rows: Mapping[str, Sequence[float]], measured: Mapping[str, Any]) -> Figures:
    """Mean IoU over the masks; `measured` says on what."""

    def by_steps(name: str) -> dict[int, float]:
        return {int(key.split("@")[1]): _mean(found) for key, found in rows.items() if key.startswith(f"{name}@")}

    return Figures(_mean(rows["student"]), by_steps("reference"), by_steps("refine_student"), by_steps("refine_truth"),
                   _mean(rows["codec"]), {**measured, "masks": len(rows["student"])})  # fmt: skip


def _mean(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 4)
