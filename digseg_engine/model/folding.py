"""Folds everything constant out of a student, exactly: what is left depends on the picture and the prompts alone.

The zero mask slot leaves 4 of 8 input channels; the fixed timestep turns the time MLP into a bias of each residual
block; the neutral prompt turns every text cross-attention of the trunk into two thin linear layers. Queries and bases of a scale,
two linear layers of the same features, become one convolution, which runtimes compute without turning the picture round.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from digseg_engine.model.reference import run_unet, time_embedding
from digseg_engine.model.student import Student


class FoldedCrossAttention(nn.Module):
    """Cross-attention to L constant tokens: scores and output are linear maps of width heads * L around a softmax."""

    def __init__(self, attention: Attention, tokens: Tensor) -> None:
        super().__init__()
        heads, length = attention.heads, tokens.shape[0]
        keys = attention.to_k(tokens).view(length, heads, -1).transpose(0, 1)  # [H, L, d]
        values = attention.to_v(tokens).view(length, heads, -1).transpose(0, 1)  # [H, L, d]
        query = attention.to_q.weight.view(heads, keys.shape[-1], -1)  # [H, d, C]
        back = attention.to_out[0].weight.view(-1, heads, keys.shape[-1]).permute(1, 2, 0)  # [H, d, C]
        self.heads = heads
        self.score = nn.Linear(query.shape[-1], heads * length, bias=False)
        self.mix = nn.Linear(heads * length, back.shape[-1])
        self.score.weight.copy_((keys * attention.scale @ query).flatten(0, 1))
        self.mix.weight.copy_((values @ back).flatten(0, 1).T)
        self.mix.bias.copy_(attention.to_out[0].bias)

    def forward(self, hidden_states: Tensor, **_: object) -> Tensor:
        """hidden_states [B, N, C] -> [B, N, C]."""
        scores = self.score(hidden_states).unflatten(-1, (self.heads, -1))
        return self.mix(torch.softmax(scores, dim=-1).flatten(-2))


class FoldedStudent(Student):
    """A student whose trunk takes nothing but z and the picture's detail; `cells`: of every scale the layer that makes its
    queries and, below them, its bases."""

    cells: nn.ModuleList

    def trunk(self, z: Tensor, detail: Tensor | None = None) -> list[Tensor]:
        return run_unet(self.unet, z, None, self.neutral, detail=detail)

    def by_cell(self, features: list[Tensor]) -> list[Tensor]:
        return [cells(x) for cells, x in zip(self.cells, features)]


Filled = Callable[[nn.Module], AbstractContextManager[None]]


@torch.no_grad()
def fold_student(
    student: Student, in_place: bool = False, filled: Filled = lambda module: nullcontext()
) -> FoldedStudent:
    """A folded copy of `student`; the original is left alone. Outputs agree to rounding (a test holds this).

    in_place: fold `student` itself, for one too large to hold twice. `filled(module)` is entered while the weights of a
    module are needed, for one whose weights lie on disk.
    """
    folded = student if in_place else copy.deepcopy(student)
    folded.__class__ = FoldedStudent
    unet = folded.unet
    time = torch.full((1,), folded.last_timestep, device=folded.neutral.device)
    with filled(unet.time_embedding):
        embedding = time_embedding(unet, time)
    for block in [m for m in unet.modules() if isinstance(m, ResnetBlock2D)]:
        if block.time_emb_proj is not None:
            with filled(block.time_emb_proj):
                block.conv1.bias += block.time_emb_proj(block.nonlinearity(embedding))[0]
            block.time_emb_proj = None
    for owner in list(unet.modules()):
        attention = getattr(owner, "attn2", None)
        if isinstance(attention, Attention):
            with filled(attention):
                owner.attn2 = FoldedCrossAttention(attention, folded.neutral[0])
    folded.cells = nn.ModuleList()
    for inject, reduce in zip(folded.injections, folded.reduce):
        with filled(inject), filled(reduce):
            folded.cells.append(_by_cell(inject.query, reduce))
    unet.conv_in = _first_channels(unet.conv_in, 4)
    unet.time_embedding = unet.time_proj = None
    unet.conv_norm_out = unet.conv_act = unet.conv_out = None  # the student reads features, not v
    return folded.eval()


def _by_cell(*layers: nn.Linear) -> nn.Conv2d:
    """Linear layers of the same features, stacked, as a convolution of single cells."""
    weight = torch.cat([layer.weight for layer in layers])[:, :, None, None]
    stacked = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=False, device=weight.device, dtype=weight.dtype)
    stacked.weight.copy_(weight)
    return stacked


def _first_channels(conv: nn.Conv2d, count: int) -> nn.Conv2d:
    cut = nn.Conv2d(count, conv.out_channels, conv.kernel_size, conv.stride, conv.padding)
    cut.weight.copy_(conv.weight[:, :count])
    cut.bias.copy_(conv.bias)
    return cut
