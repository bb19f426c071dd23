"""The two graphs that every runtime runs, as PyTorch modules: text to folded text, picture and folded text to logits.

Exporters trace them, the torch backends run them; nothing else about a checkpoint is needed to segment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import CLIPTextModel

from digseg_engine.model.folding import FoldedStudent, fold_student
from digseg_engine.model.pretrained import Checkpoint
from digseg_engine.model.student import Segmenter


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


@dataclass(frozen=True)
class GraphModules:
    """The two modules, float32, in evaluation mode."""

    text_encoder: TextGraph
    segmenter: Segmenter


def graph_modules(checkpoint: Checkpoint, **how: Any) -> GraphModules:
    """The graphs of a checkpoint with everything constant folded away; `how` goes to `fold_student`."""
    student = fold_student(checkpoint.student, **how)
    return GraphModules(TextGraph(checkpoint.text_encoder, student).eval(), Segmenter(checkpoint.vae, student).eval())
