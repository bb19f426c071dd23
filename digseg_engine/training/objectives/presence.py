"""The loss of the presence readout: is a prompt's thing in the picture, asked with as many hard negatives as things that are
there. Trunk and injections stay as they are, to the bit.

Hard negatives teach most of it (SAM 3, Meta 2025: none to 30 a picture raise presence MCC from 0.44 to 0.68).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel

from digseg_engine.data.batch import Batch, Batches
from digseg_engine.data.negatives import hard_names
from digseg_engine.data.wordings import encode_text
from digseg_engine.errors import UsageError
from digseg_engine.model.devices import device_of
from digseg_engine.model.student import FoldedText, Student
from digseg_engine.text import PromptTokenizer
from digseg_engine.training.loop import Parts, StageConfig, unwrap
from digseg_engine.training.objectives.losses import mask_loss, shrink_labels

SMALLEST = 4  # pixels; whether a smaller piece of a thing is there is not asked
CELLS_WEIGHT = 2.0  # of the cells' BCE, Dice being 1, as in the student's loss of masks
KNOWN = 0.75  # of a crop must be labelled before it is said that something is not in it


class PresenceReader(nn.Module):
    """A student of which only the presence readout trains. Raises UsageError for one without a readout."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        if not student.config.presence_width:
            raise UsageError("this student has no presence readout (presence_width 0); add one with --presence-only, or train "
                             "without the stage")  # fmt: skip
        self.student = student.requires_grad_(False)
        self.student.read_presence.requires_grad_(True)

    def forward(self, images: Tensor, latents: Tensor, text: FoldedText) -> tuple[Tensor, Tensor]:
        """images [B, 3, H, W], latents [B, 4, h, w], K folded prompts -> presence logits [B, K], those of cells [B, K, h, w]."""
        with torch.no_grad():
            encoding = self.student.encode(*self.student.describe(images, latents))
            scales, meaning = self.student.coarse(encoding, text)
        return self.student.read_presence(scales, meaning), self.student.read_presence.cells(scales, meaning)


class PresenceLoss:
    """Binary cross entropy in which prompts that are there and prompts that are not weigh the same; and the student's loss of
    masks on what the cells say, without which the few cells of a small thing are found slowly.

    batches: they are asked with hard negatives (see `data.negatives`).
    """

    def __init__(
        self, batches: Batches, text: CLIPTextModel, tokenizer: PromptTokenizer, config: StageConfig
    ) -> None:  # fmt: skip
        self.batches, self.text, self.tokenizer, self.config = batches.asked_by(hard_names), text, tokenizer, config

    def __call__(self, reader: nn.Module, step: int) -> tuple[Tensor, Parts]:
        batch = self.batches.batch(step, self.config.batch, self.config.prompts).to(device_of(reader))
        with torch.no_grad():
            text, mask = encode_text(self.text, self.tokenizer, [query.text for query in batch.queries])
            bare: PresenceReader = unwrap(reader)
            folded = bare.student.fold_text(text, mask)
        logits, cells = reader(batch.images, batch.latents, folded)
        return presence_error(logits, cells, batch)


def presence_error(logits: Tensor, cells: Tensor, batch: Batch) -> tuple[Tensor, Parts]:
    """The loss of presence logits [B, K] and of what the cells say [B, K, h, w] about a batch, and its parts."""
    logits, labels = logits.float(), shrink_labels(batch.masks, batch.valid, cells.shape[-2:])
    bce, dice = mask_loss(cells.float(), *labels)
    there, absent = known_presence(batch)
    error = F.binary_cross_entropy_with_logits(logits, there.float(), reduction="none")
    missed = (error * there).sum() / there.sum().clamp(min=1)
    false = (error * absent).sum() / absent.sum().clamp(min=1)
    right = ((logits > 0) == there)[there | absent].float().mean()
    loss = (missed + false) / 2 + CELLS_WEIGHT * bce + dice
    parts = {"missed": missed, "false": false, "right": right, "dice": dice}
    return loss, {name: value.detach() for name, value in parts.items()}


def known_presence(batch: Batch) -> tuple[Tensor, Tensor]:
    """(what is there, what is known not to be) of every picture and prompt, [B, K] bool each; of the rest nothing is said."""
    area = batch.masks.sum((-2, -1))
    if batch.valid is None:
        return area >= SMALLEST, area == 0
    share = batch.valid.mean((-2, -1))  # [B, K or 1]
    enough = share == 1 if share.shape[1] > 1 else share >= KNOWN  # of one prompt unknown: a region that may be it
    return area >= SMALLEST, (area == 0) & enough
