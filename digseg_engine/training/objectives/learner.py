"""A student while it learns, with what it is asked beside masks: dense labels of every class, and presence."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from digseg_engine.errors import UsageError
from digseg_engine.model.student import FoldedText, Student
from digseg_engine.training.objectives.dense import Classifiers


class Answers(NamedTuple):
    """What a learner says of B pictures and K prompts; None: it is not asked for that."""

    masks: Tensor  # logits [B, K, u*h, u*w]
    classes: Tensor | None = None  # logits of every class of the painted scenes [B, P, h, w]
    presence: Tensor | None = None  # logits [B, K]
    cells: Tensor | None = None  # presence logits of every cell [B, K, h, w]


class Learner(nn.Module):
    """A student whose trunk learns more than its masks; only the student is kept.

    dense: it names every class too (see `dense.py`), by classifiers that are thrown away.
    presence: its readout learns with it, so that the trunk comes to say what is there. Raises UsageError where it has none.
    """

    def __init__(self, student: Student, dense: bool = False, presence: bool = False) -> None:
        super().__init__()
        if presence and not student.config.presence_width:
            raise UsageError("this student has no presence readout (presence_width 0) to train beside its masks")
        self.student, self.presence = student, presence
        self.classify = Classifiers(student) if dense else None

    def forward(self, images: Tensor, latents: Tensor, text: FoldedText) -> Answers:
        """images [B, 3, H, W], latents [B, 4, h, w], K folded prompts -> Answers."""
        features, to_head = self.student.describe(images, latents)
        encoding = self.student.encode(features, to_head)
        answers = Answers(self.student.answer(encoding, text))
        if self.classify is not None:
            answers = answers._replace(classes=self.classify(features))
        if self.presence:
            scales, meaning = self.student.coarse(encoding, text)
            read = self.student.read_presence
            answers = answers._replace(presence=read(scales, meaning), cells=read.cells(scales, meaning))
        return answers


def learner_of(student: Student, dense: bool = False, presence: bool = False) -> Student | Learner:
    """The module that a stage trains: the student itself where it learns nothing but masks."""
    return Learner(student, dense, presence) if dense or presence else student


def student_of(module: nn.Module) -> nn.Module:
    """The student in what a stage trains."""
    return module.student if isinstance(module, Learner) else module
