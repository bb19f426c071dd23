"""Evaluation on the fixed test scenes: dataset-level IoU per prompt, at the pictures' own resolution.

Every prompt of a domain's vocabulary is asked about every picture of that domain, so a false alarm on a picture
without the thing costs as much as a miss. Logits are upsampled, never labels.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from digseg_engine.errors import UsageError
from digseg_engine.model.autoencoder import decode_mask, encode_image
from digseg_engine.model.pretrained import Checkpoint
from digseg_engine.training.pool import to_tensor
from digseg_engine.training.prompts import encode_text
from digseg_engine.training.scenes import ALL_PAIRS, CLASSES, SEEN_PAIRS, UNSEEN_PAIRS, Scene, scene

TEST_SEED = 1_000_000
Predict = Callable[[list[Scene], list[str]], NDArray[np.bool_]]  # -> [B, K, H, W]


@dataclass
class Score:
    """Intersections and unions per prompt over a data set, and the false-alarm area where the prompt is absent."""

    prompts: list[str]
    intersection: NDArray[np.int64] = field(init=False)
    union: NDArray[np.int64] = field(init=False)
    truth: NDArray[np.int64] = field(init=False)
    absent_area: float = 0.0
    absent_pairs: int = 0

    def __post_init__(self) -> None:
        self.intersection, self.union, self.truth = (np.zeros(len(self.prompts), np.int64) for _ in range(3))

    def add(self, predicted: NDArray[np.bool_], wanted: NDArray[np.bool_]) -> None:
        """predicted, wanted [B, K, H, W]."""
        self.intersection += (predicted & wanted).sum((0, 2, 3))
        self.union += (predicted | wanted).sum((0, 2, 3))
        self.truth += wanted.sum((0, 2, 3))
        absent = ~wanted.any((2, 3))
        self.absent_area += float(predicted.mean((2, 3))[absent].sum())
        self.absent_pairs += int(absent.sum())

    def iou(self) -> dict[str, float]:
        """IoU of every prompt that occurs in the data."""
        found = self.truth > 0
        return {p: float(i / u) for p, i, u, ok in zip(self.prompts, self.intersection, self.union, found) if ok}

    def mean(self, prompts: tuple[str, ...] | None = None) -> float:
        """Mean IoU over prompts that occur in the data."""
        values = [iou for prompt, iou in self.iou().items() if prompts is None or prompt in prompts]
        return float(np.mean(values)) if values else float("nan")

    @property
    def false_area(self) -> float:
        """Mean share of the picture marked for a prompt that is not there."""
        return self.absent_area / max(1, self.absent_pairs)


def student_predictor(checkpoint: Checkpoint) -> Predict:
    """One pass of the student for all prompts."""

    @torch.no_grad()
    def predict(scenes: list[Scene], prompts: list[str]) -> NDArray[np.bool_]:
        image = to_tensor(np.stack([one.image for one in scenes]))
        text, mask = encode_text(checkpoint.text_encoder, checkpoint.tokenizer, prompts)
        student = checkpoint.student
        logits = student(image, encode_image(checkpoint.vae, image), student.fold_text(text, mask))
        full = F.interpolate(logits, size=image.shape[-2:], mode="bilinear", align_corners=False)
        return (full > 0).numpy()

    return predict


def reference_predictor(checkpoint: Checkpoint, steps: int) -> Predict:
    """`steps` passes of the reference for every (picture, prompt) pair; one step uses the zero slot."""

    @torch.no_grad()
    def predict(scenes: list[Scene], prompts: list[str]) -> NDArray[np.bool_]:
        image = to_tensor(np.stack([one.image for one in scenes]))
        z = encode_image(checkpoint.vae, image)
        columns = []
        for prompt in prompts:
            text, mask = encode_text(checkpoint.text_encoder, checkpoint.tokenizer, [prompt])
            noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0)) if steps > 1 else None
            m = checkpoint.reference.sample(z, text, mask, checkpoint.schedule, steps, noise)
            columns.append(decode_mask(checkpoint.vae, m) > 0)
        return torch.stack(columns, 1).numpy()

    return predict


def bundle_predictor(folder: Path) -> Predict:
    """An exported bundle through the engine's own runtime."""
    from digseg_engine.runtime.engine import Engine

    engine = Engine.load(folder)

    def predict(scenes: list[Scene], prompts: list[str]) -> NDArray[np.bool_]:
        return np.stack([engine.segment(one.image, prompts, size=one.image.shape[0]).masks for one in scenes])

    return predict


def evaluate_domain(
    predict: Predict, domain: str, count: int, size: int, tick: Callable[[int], None] = lambda done: None
) -> Score:
    """Score the first `count` test scenes of a domain at size x size pixels."""
    if count < 1:
        raise UsageError(f"the number of test scenes must be at least 1, got {count}")
    prompts = list(ALL_PAIRS) if domain == "objects" else list(CLASSES[domain])
    score = Score(prompts)
    for start in range(0, count, 8):
        scenes = [scene(TEST_SEED + i, domain, size, "test") for i in range(start, min(start + 8, count))]
        wanted = np.stack([[one.mask(prompt) for prompt in prompts] for one in scenes])
        score.add(predict(scenes, prompts), wanted)
        tick(len(scenes))
    return score


def summary(domain: str, score: Score) -> dict[str, float]:
    """The headline figures of a domain."""
    if domain == "objects":
        figures = {"objects, seen pairs": score.mean(SEEN_PAIRS), "objects, unseen pairs": score.mean(UNSEEN_PAIRS)}
    else:
        figures = {domain: score.mean()}
    return {**figures, f"{domain}, false area": score.false_area}


def write_report(path: Path, scores: dict[str, Score], about: dict[str, object]) -> None:
    """JSON with the settings, the headline figures and the IoU of every prompt."""
    figures: dict[str, float] = {}
    for domain, score in scores.items():
        figures.update(summary(domain, score))
    body = {**about, "figures": figures, "iou": {domain: score.iou() for domain, score in scores.items()}}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body, indent=2) + "\n")
