"""Pretraining of the trunk on dense labels: what Stable Diffusion's weights give a large model, in the small.

A model trained from nothing has no pretrained diffusion network to start from. Its U-Net first learns to tell things
apart, one linear classifier per decoder scale (deep supervision, Lee et al. 2015); the classifiers are then thrown away,
and reference and student both start from this U-Net.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from digseg_engine.model.devices import device_of
from digseg_engine.model.mask_head import upsample_sum
from digseg_engine.model.student import Student
from digseg_engine.training.loop import Parts, StageConfig
from digseg_engine.training.objectives.losses import shrink
from digseg_engine.worlds.pool import NAMES, Drawn, SceneBatches
from digseg_engine.worlds.scenes import ALL_PAIRS, CLASSES

PRIMITIVES = tuple(name for name in NAMES if name not in ALL_PAIRS)  # pairs are left to language
BCE_WEIGHT = 0.3  # Dice being 1: its sum is over all classes, most of which are in no picture of the batch
RARE = -2.0  # starting logit: a pixel belongs to few classes


class Classifiers(nn.ModuleList):
    """One linear classifier per scale of a student's trunk."""

    def __init__(self, student: Student, classes: int = len(PRIMITIVES)) -> None:
        super().__init__(nn.Conv2d(student.config.width, classes, 1) for _ in student.strides)
        self.strides = student.strides
        nn.init.constant_(self[0].bias, RARE)  # type: ignore[arg-type]

    def forward(self, features: list[Tensor]) -> Tensor:
        """Features of every scale -> logits of every class [B, P, h, w]."""
        return upsample_sum([read(x) for read, x in zip(self, features)], self.strides)


class Backbone(nn.Module):
    """A student's trunk with its classifiers."""

    def __init__(self, student: Student, classes: int = len(PRIMITIVES)) -> None:
        super().__init__()
        self.student, self.classify = student, Classifiers(student, classes)

    def forward(self, images: Tensor, latents: Tensor) -> Tensor:
        """images [B, 3, H, W], latents [B, 4, h, w] -> logits of every class [B, P, h, w]."""
        features, _ = self.student.describe(images, latents)
        answered: Tensor = self.classify(features)
        return answered


def pool_regions(features: list[Tensor], masks: Tensor) -> Tensor:
    """Mean of every scale's features under R masks: features [R, C, hs, ws] each, masks [R, H, W] -> [R, S*C]."""
    means = []
    for x in features:
        inside = shrink(masks[:, None], x.shape[-2:])  # [R, 1, hs, ws]
        means.append((x * inside).sum((-2, -1)) / inside.sum((-2, -1)).clamp(min=1e-3))
    return torch.cat(means, dim=1)


def dense_loss(logits: Tensor, drawn: Drawn) -> tuple[Tensor, Parts]:
    """Weighted BCE over all classes + Dice over those of the pictures' domain, for logits [B, P, h, w]; and the two alone."""
    own = [i for i, name in enumerate(PRIMITIVES) if name in CLASSES[drawn.pool.domain]]
    names, device = [PRIMITIVES[i] for i in own], logits.device
    labels, weight = torch.zeros_like(logits), torch.ones_like(logits)
    labels[:, own] = shrink(drawn.pool.masks(drawn.index, names).to(device), logits.shape[-2:])
    known = drawn.pool.known(drawn.index, names)
    if known is not None:
        weight[:, own] = shrink(known.to(device), logits.shape[-2:])
    bce = (weight * F.binary_cross_entropy_with_logits(logits, labels, reduction="none")).mean((0, 2, 3)).sum()
    p, y = logits[:, own].sigmoid() * weight[:, own], labels[:, own] * weight[:, own]
    dice = (1 - (2 * (p * y).sum((0, 2, 3)) + 1) / ((p + y).sum((0, 2, 3)) + 1)).mean()
    return BCE_WEIGHT * bce + dice, {"bce": bce.detach(), "dice": dice.detach()}


class BackboneLoss:
    """Dense labels of single words, a batch of one domain at a time."""

    def __init__(self, batches: SceneBatches, config: StageConfig) -> None:
        self.batches, self.config = batches, config

    def __call__(self, model: nn.Module, step: int) -> tuple[Tensor, Parts]:
        _, drawn = self.batches.draw(step, self.config.batch)
        device = device_of(model)
        return dense_loss(model(drawn.images.to(device), drawn.latents.to(device)), drawn)
