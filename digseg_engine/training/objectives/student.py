"""The loss of the student: ground truth, and now and then the reference's masks (distillation)."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel

from digseg_engine.data.batch import Batch, Batches
from digseg_engine.data.negatives import hard_names
from digseg_engine.data.wordings import encode_text
from digseg_engine.model.autoencoder import Autoencoder, decode_mask
from digseg_engine.model.devices import device_of
from digseg_engine.model.reference import Reference
from digseg_engine.model.sampler import Schedule, sample
from digseg_engine.model.student import Student
from digseg_engine.text import PromptTokenizer
from digseg_engine.training.loop import Parts, StageConfig, unwrap
from digseg_engine.training.objectives.dense import dense_loss
from digseg_engine.training.objectives.learner import Answers, Learner, student_of
from digseg_engine.training.objectives.losses import mask_loss, ranking_loss, shrink, shrink_labels
from digseg_engine.training.objectives.noise import generator
from digseg_engine.training.objectives.presence import presence_error

# Weights of the loss, Dice being 1. Chosen by hand, not searched.
BCE_WEIGHT = 2.0  # the only part that absent prompts have: Dice and ranking count present ones alone
RANKING_WEIGHT = 0.5  # orders similar prompts where the other two have found the region
PRESENCE_WEIGHT = 0.5  # of a learner's presence, whose own parts sum to about as much as those of the masks
IMITATION_WEIGHT = 0.5  # times the trust of every pair, so at most half of what the truth weighs
TRUST_POWER = 2  # a reference that is half right (soft Dice 0.5) counts a quarter
# The reference takes N steps for every pair, where the student looks once at a picture: few pairs are asked.
IMITATED_PAIRS = 16  # (picture, prompt) pairs each time
PRESENT_ODDS = (
    5.0  # a present pair is drawn so many times as often as an absent one: empty masks teach little of shapes
)


class DistillationLoss:
    """Student logits against ground truth, and now and then (`every`) also against the reference's N-step masks.

    every: how often that is; 0: never (the reference knows nothing of the data, or there is no time).

    A `Learner` is taught by dense labels too (see `dense.py`), and presence: then every second batch is asked hard negatives.
    """

    def __init__(
        self, batches: Batches, vae: Autoencoder, text: CLIPTextModel, tokenizer: PromptTokenizer,
        reference: Reference, schedule: Schedule, config: StageConfig, teacher_steps: int = 4, every: int = 0,
    ) -> None:  # fmt: skip
        self.batches, self.vae, self.text, self.tokenizer = batches, vae, text, tokenizer
        self.reference, self.schedule, self.config = reference, schedule, config
        self.teacher_steps, self.every = teacher_steps, every

    @cached_property
    def hard(self) -> Batches:
        """The same pictures, asked hard negatives."""
        return self.batches.asked_by(hard_names)

    def __call__(self, student: nn.Module, step: int) -> tuple[Tensor, Parts]:
        bare: Student = student_of(unwrap(student))  # type: ignore[assignment]
        learner = unwrap(student)
        asks_presence = isinstance(learner, Learner) and learner.presence
        source = self.hard if asks_presence and step % 2 else self.batches
        batch = source.batch(step, self.config.batch, self.config.prompts).to(device_of(student))
        with torch.no_grad():
            text, mask = encode_text(self.text, self.tokenizer, [q.text for q in batch.queries])
        said = student(batch.images, batch.latents, bare.fold_text(text, mask))
        answers = said if isinstance(said, Answers) else Answers(said)
        logits = answers.masks
        labels = shrink_labels(batch.masks, batch.valid, logits.shape[-2:])
        (bce, dice), rank = mask_loss(logits, *labels), ranking_loss(logits, *labels)
        loss = BCE_WEIGHT * bce + dice + RANKING_WEIGHT * rank
        parts = {"bce": bce.detach(), "dice": dice.detach(), "rank": rank.detach()}
        loss = loss + self._beside(answers, batch, parts)
        if self.every and step % self.every == 0:
            imitation = self._imitation(batch, logits, text, mask, step)
            loss = loss + IMITATION_WEIGHT * imitation
            parts["imitation"] = imitation.detach()
        return loss, parts

    def _beside(self, answers: Answers, batch: Batch, parts: dict[str, Tensor]) -> Tensor:
        """What a `Learner` learns beside masks, weighted; its parts are added to `parts`."""
        loss = answers.masks.new_zeros(())
        if answers.classes is not None and batch.drawn is None:  # pictures whose every class nobody knows
            loss = loss + 0.0 * answers.classes.sum()
        elif answers.classes is not None:
            dense, words = dense_loss(answers.classes, batch.drawn)
            loss, parts["dense"] = loss + dense, words["dice"]
        if answers.presence is not None and answers.cells is not None:
            presence, known = presence_error(answers.presence, answers.cells, batch)
            loss = loss + PRESENCE_WEIGHT * presence
            parts.update({f"presence_{name}": known[name] for name in ("missed", "false", "right")})
        return loss

    def _imitation(self, batch: Batch, logits: Tensor, text: Tensor, mask: Tensor, step: int) -> Tensor:
        """BCE to the reference's soft masks on a few (picture, prompt) pairs, weighted by how right the reference is."""
        random = generator(self.batches.seed, step)
        weights = batch.present.flatten().float() * (PRESENT_ODDS - 1) + 1
        pair = torch.multinomial(weights.cpu(), min(IMITATED_PAIRS, len(weights)), generator=random)
        b, k = pair // len(batch.queries), pair % len(batch.queries)
        with torch.no_grad():
            z = batch.latents[b]
            noise = torch.randn(z.shape, generator=random).to(z.device)
            m = sample(
                lambda latents, t: self.reference(latents, t, text[k], mask[k]),
                z,
                self.schedule,
                self.teacher_steps,
                noise,
            )
            soft = shrink(decode_mask(self.vae, m).sigmoid()[:, None], logits.shape[-2:])[:, 0]
            masks, valid = batch.of(b, k)
            masks, weight = shrink_labels(masks[:, None], valid, logits.shape[-2:])
            weight = torch.ones_like(soft) if weight is None else weight[:, 0]
            truth, judged = masks[:, 0] * weight, soft * weight
            trust = 2 * (judged * truth).sum((-2, -1)) / (judged.sum((-2, -1)) + truth.sum((-2, -1)) + 1)  # soft Dice
        error = F.binary_cross_entropy_with_logits(logits[b, k], soft, reduction="none")
        error = (error * weight).sum((-2, -1)) / weight.sum((-2, -1)).clamp(min=1)
        return (error * trust**TRUST_POWER).mean()
