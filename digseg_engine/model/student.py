"""The student: one pass over the picture, then all K prompts from shared features.

1. Trunk, once per image: z -> U-Net (zero mask slot, last timestep, neutral prompt), with pixel detail added after its
   first convolution -> decoder features at every scale.
2. Text pathway, per prompt: folded text injection (see `text_pathway.py`) straight into the narrow head width.
3. Light mask head, per prompt: scales summed at latent resolution, two small convolutions, sub-pixel upsampling.
Everything that no prompt changes is one tensor, the encoding (`encoding.py`): `encode` makes it, `answer` and `presence` read it.
The trunk and its text pathway follow DiGSeg; the shared pass, the folded form and the image stem are our decisions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from digseg_engine.model.config import StudentConfig
from digseg_engine.model.encoding import Layout
from digseg_engine.model.mask_head import DetailStem, MaskHead, upsample_sum
from digseg_engine.model.pooled_attention import pool_attention
from digseg_engine.model.presence import CoarseScale, PresenceHead, meaning_of
from digseg_engine.model.reference import decoder_strides, decoder_widths, grid_ratio, run_unet, time_embedding
from digseg_engine.model.text_pathway import Slots, TextInjection, text_injection

WHITENING_FLOOR = (
    0.1  # so that a direction that the typical prompts never use is amplified at most 3.2 times (1 / sqrt)
)


@dataclass(frozen=True)
class FoldedText:
    """Everything that depends on the prompts alone; cached with them.

    keys [K, S, H, d, L], values [K, S, H, L, Co] for S scales, mask [K, L] bool.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor


class Student(nn.Module):
    """Trunk, folded text injection and mask head. The autoencoder and text encoder stay outside (frozen).

    unet: 8 channels in (its mask slot stays zero) or 4. latent_stride: pixels per latent cell.
    train_timesteps: of the schedule the U-Net was trained with; the trunk always runs at the last of them.
    """

    def __init__(
        self, unet: UNet2DConditionModel, config: StudentConfig, latent_stride: int, train_timesteps: int = 1000
    ) -> None:
        super().__init__()
        pool_attention(unet, config.attention_pool)
        self.unet = unet
        self.config = config
        self.last_timestep = train_timesteps - 1
        self.strides = decoder_strides(unet)
        widths, text_dim = decoder_widths(unet), unet.config.cross_attention_dim
        self.project = nn.ModuleList(nn.Conv2d(width, config.width, 1) for width in widths)
        self.injections = nn.ModuleList(TextInjection(config.width, text_dim, config.heads, gate=1.0) for _ in widths)
        self.reduce = nn.ModuleList(nn.Linear(config.width, config.head_width, bias=False) for _ in widths)
        self.detail = self._stem(config, latent_stride) if config.detail_width else None
        self.head = MaskHead(config.head_width, config.upsample)
        ratios = tuple(grid_ratio(unet) // stride for stride in self.strides)
        self.layout = Layout(config.width, config.head_width, ratios)
        if config.presence_width:
            said = len(widths) * (
                config.width + config.heads * config.head_width
            )  # numbers of a token's keys and values
            sizes = config.width, config.head_width, said, config.presence_width
            self.read_presence = PresenceHead(*sizes, self.strides[: self.layout.coarse])
        # The empty prompt [1, 2, D]; zeros in a model trained from nothing.
        self.register_buffer("neutral", torch.zeros(1, 2, text_dim))
        self.register_buffer("text_centre", torch.zeros(text_dim))  # [D]
        self.register_buffer("text_whiten", torch.eye(text_dim))  # [D, D], see `set_whitening`
        self.kernel_slots: Slots = {"text_injection": text_injection}
        self.recompute_answers = False  # in training: keep no activations of the prompts' part (see `training.thrift`)

    def _stem(self, config: StudentConfig, latent_stride: int) -> DetailStem:
        return DetailStem(
            config.detail_width, config.detail_blocks, self.unet.conv_in.out_channels, config.head_width, latent_stride
        )

    @torch.no_grad()
    def set_whitening(self, tokens: Tensor, floor: float = WHITENING_FLOOR) -> None:
        """Learn the whitening of text features from tokens [N, D] of typical prompts (start tokens left out).

        Features of a text encoder share a few strong directions, and the words differ in the weak ones, which are
        learned slowly without whitening. `floor` is added to every variance.
        """
        centre = tokens.mean(0)
        spread = torch.cov(tokens.T, correction=0)  # [D, D]; of low rank when the tokens are few
        variances, axes = torch.linalg.eigh(spread)
        self.text_centre.copy_(centre)
        self.text_whiten.copy_(axes * (variances.clamp(min=0) + floor).rsqrt())

    def fold_text(self, text: Tensor, mask: Tensor) -> FoldedText:
        """text [K, L, D], mask [K, L] -> FoldedText of all scales."""
        text = (text - self.text_centre) @ self.text_whiten
        folded = [inject.fold(text, reduce.weight) for inject, reduce in zip(self.injections, self.reduce)]
        keys, values = (torch.stack(parts, dim=1) for parts in zip(*folded))
        return FoldedText(keys, values, mask)

    def trunk(self, z: Tensor, detail: Tensor | None = None) -> list[Tensor]:
        """z [B, 4, h, w], detail [B, C0, h, w] of the stem -> decoder features, coarse to fine, [B, Cs, hs, ws] each."""
        b = z.shape[0]
        slots = torch.cat([z, torch.zeros_like(z)], dim=1) if self.unet.conv_in.in_channels == 8 else z
        time = torch.full((b,), self.last_timestep, device=z.device)
        neutral = self.neutral.expand(b, -1, -1).to(z.dtype)
        return run_unet(self.unet, slots, time_embedding(self.unet, time), neutral, detail=detail)

    def describe(self, image: Tensor, z: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """All that is computed once per image: normalised features of every scale [B, C, hs, ws], detail for the head."""
        to_trunk, to_head = (None, None) if self.detail is None else self.detail(image)
        features = self.trunk(z, to_trunk)
        narrow = [inject.norm(project(x)) for x, project, inject in zip(features, self.project, self.injections)]
        return narrow, to_head

    def forward(self, image: Tensor, z: Tensor, text: FoldedText) -> Tensor:
        """image [B, 3, H, W], z [B, 4, h, w], K folded prompts -> logits [B, K, u*h, u*w]."""
        encoding = self.encode(*self.describe(image, z))
        if self.recompute_answers and torch.is_grad_enabled():
            answered: Tensor = checkpoint(self.answer, encoding, text, use_reentrant=False)
            return answered
        return self.answer(encoding, text)

    def encode(self, features: list[Tensor], to_head: Tensor | None) -> Tensor:
        """What `describe` found -> the encoding [B, M, rows, columns] (see `encoding.py`), asked any number of times."""
        scales = self.by_cell(features)
        if to_head is None:
            to_head = torch.zeros_like(scales[-1][:, : self.config.head_width])
        return self.layout.pack(scales, to_head)

    def by_cell(self, features: list[Tensor]) -> list[Tensor]:
        """Features [B, C, hs, ws] of every scale -> their queries and bases [B, C + Co, hs, ws]."""
        layers = zip(features, self.injections, self.reduce)
        return [
            torch.cat([project_cells(x, inject.query), project_cells(x, reduce)], dim=1) for x, inject, reduce in layers
        ]

    def answer(self, encoding: Tensor, text: FoldedText) -> Tensor:
        """All K prompts about encoded pictures [B, M, rows, columns] -> logits [B, K, u*h, u*w]."""
        b = encoding.shape[0]
        maps = [mixed.flatten(0, 1) for mixed in self._inject(encoding, text, len(self.strides))]  # [B*K, Co, hs, ws]
        fused = upsample_sum(maps, self.strides).unflatten(0, (b, -1))  # [B, K, Co, h, w]
        fused = fused + self.layout.detail(encoding)[:, None]
        return self.head(fused.flatten(0, 1)).unflatten(0, (b, -1))  # [B, K, u*h, u*w]

    def presence(self, encoding: Tensor, text: FoldedText) -> Tensor:
        """Is each of K prompts in encoded pictures [B, M, rows, columns]? Logits [B, K], from the coarse scales alone.

        Of a prompt nothing but its own text counts. Needs a student with a presence readout (`presence_width`)."""
        return self.read_presence(*self.coarse(encoding, text))

    def coarse(self, encoding: Tensor, text: FoldedText) -> tuple[list[CoarseScale], Tensor]:
        """What presence reads: the coarse scales, and what every prompt means as a whole."""
        count = self.layout.coarse
        pairs = zip(self.layout.scales(encoding, count), self._inject(encoding, text, count))
        scales = [CoarseScale(query, base, mixed) for (query, base), mixed in pairs]
        return scales, meaning_of(text.keys, text.values, text.mask)

    def _inject(self, encoding: Tensor, text: FoldedText, scales: int) -> list[Tensor]:
        """The first scales with every prompt's text injected: [B, K, Co, hs, ws] each."""
        attend, maps = self.kernel_slots["text_injection"], []
        for s, (query, base) in enumerate(self.layout.scales(encoding, scales)):
            cells = [x.flatten(2).transpose(1, 2).contiguous() for x in (query, base)]  # [B, N, C], [B, N, Co]
            keys, values = text.keys[:, s].contiguous(), text.values[:, s].contiguous()
            mixed = attend(*cells, keys, values, text.mask)  # [B, K, N, Co]
            maps.append(mixed.transpose(2, 3).unflatten(3, query.shape[-2:]))
        return maps


def project_cells(features: Tensor, linear: nn.Linear) -> Tensor:
    """A linear layer at every cell: features [B, C, h, w] -> [B, C', h, w]."""
    return linear(features.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, features.shape[-2:])
