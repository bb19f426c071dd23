"""The graphs that every runtime runs, as PyTorch modules, cut where the contract cuts (`contract.py`).

Prompts to folded text; a picture to its encoding; encoding and folded text to presence, and to logits. Exporters trace
them, the torch backends run them; nothing else about a checkpoint is needed to segment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import CLIPTextModel

from digseg_engine.model.autoencoder import Autoencoder, encode_image
from digseg_engine.model.folding import FoldedStudent, fold_student
from digseg_engine.model.pretrained import Checkpoint
from digseg_engine.model.student import FoldedText, Student


class TextGraph(nn.Module):
    """Token numbers to the folded text of every scale."""

    def __init__(self, text_encoder: CLIPTextModel, student: FoldedStudent) -> None:
        super().__init__()
        self.text_encoder, self.student = text_encoder, student

    def forward(self, token_ids: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor]:
        """token_ids [K, L], token_mask [K, L] -> keys [K, S, H, d, L], values [K, S, H, L, Co], zero at padding."""
        features = self.text_encoder(token_ids).last_hidden_state
        folded = self.student.fold_text(features, token_mask)
        live = token_mask.to(features.dtype)[:, None, None, None, :]
        return folded.keys * live, folded.values * live.transpose(-1, -2)


class ImageGraph(nn.Module):
    """A picture to its encoding: autoencoder, trunk and the shared side of the text pathway."""

    def __init__(self, vae: Autoencoder, student: Student) -> None:
        super().__init__()
        self.vae, self.student = vae, student

    def forward(self, image: Tensor) -> Tensor:
        """image [B, 3, H, W] in -1..1 -> encoding [B, M, H/s, W/s]."""
        return self.student.encode(*self.student.describe(image, encode_image(self.vae, image)))


class MaskGraph(nn.Module):
    """An encoding and folded text to masks."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, encoding: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """encoding [B, M, H/s, W/s] and folded text of K prompts -> logits [B, K, h', w']; 0 is the decision border."""
        return self.student.answer(encoding, FoldedText(keys, values, mask))


class PresenceGraph(nn.Module):
    """An encoding and folded text to one logit per prompt: is it in the picture."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, encoding: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """encoding [B, M, H/s, W/s] and folded text of K prompts -> presence [B, K]."""
        return self.student.presence(encoding, FoldedText(keys, values, mask))


@dataclass(frozen=True)
class GraphModules:
    """The modules, float32, in evaluation mode, by the names of `contract.GRAPHS`. presence is None for a student
    without a readout."""

    text_encoder: TextGraph
    image_encoder: ImageGraph
    mask_decoder: MaskGraph
    presence: PresenceGraph | None


def graph_modules(checkpoint: Checkpoint, **how: Any) -> GraphModules:
    """The graphs of a checkpoint with everything constant folded away; `how` goes to `fold_student`."""
    student = fold_student(checkpoint.student, **how)
    presence = PresenceGraph(student).eval() if student.config.presence_width else None
    return GraphModules(
        TextGraph(checkpoint.text_encoder, student).eval(), ImageGraph(checkpoint.vae, student).eval(),
        MaskGraph(student).eval(), presence,
    )  # fmt: skip
