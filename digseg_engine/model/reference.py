"""The reference (teacher): image and mask latents concatenated into a diffusion U-Net, language injected by the pathway.

After DiGSeg (arXiv 2604.24575, abstract) and Marigold's input layout [image 4 | mask 4]. The U-Net is diffusers' own
`UNet2DConditionModel`, so a Stable Diffusion 1.x / 2.x directory loads unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from digseg_engine.errors import UsageError
from digseg_engine.model.sampler import PLAIN, Schedule, sample
from digseg_engine.model.text_pathway import Slots, TextPathway

Slot = Literal["zero", "noisy"]


def expand_conv_in(unet: UNet2DConditionModel, slot: Slot) -> None:
    """Widen a pretrained 4-channel `conv_in` to [image 4 | mask 4] in place.

    slot="zero": weights `W | 0`, the network with a zero (or any) mask equals the pretrained one exactly.
    slot="noisy": weights `W/2 | W/2` (Marigold). The bias is unchanged in both.
    """
    old = unet.conv_in
    if old.in_channels != 4:
        raise UsageError(f"conv_in has {old.in_channels} input channels, expected 4; the U-Net is already expanded")
    new = nn.Conv2d(8, old.out_channels, old.kernel_size, old.stride, old.padding)
    with torch.no_grad():
        second = torch.zeros_like(old.weight) if slot == "zero" else old.weight / 2
        first = old.weight if slot == "zero" else old.weight / 2
        new.weight.copy_(torch.cat([first, second], dim=1))
        new.bias.copy_(old.bias)
    unet.conv_in = new
    unet.register_to_config(in_channels=8)


def time_embedding(unet: UNet2DConditionModel, timestep: Tensor) -> Tensor:
    """timestep [B] -> embedding [B, E] in the dtype of the U-Net."""
    return unet.time_embedding(unet.time_proj(timestep).to(unet.conv_in.weight.dtype))


def run_unet(
    unet: UNet2DConditionModel,
    sample: Tensor,
    embedding: Tensor | None,
    text: Tensor,
    text_bias: Tensor | None = None,
    inject: Callable[[int, Tensor], Tensor] | None = None,
    detail: Tensor | None = None,
) -> list[Tensor]:
    """One pass through the U-Net up to its last decoder block, spelled out so that decoder features can be used.

    sample [B, Cin, h, w], embedding [B, E] or None when folded away, text [B, L, D], text_bias [B, 1, L] added to
    cross-attention scores. `inject(i, features)` may replace the features after decoder block i; `detail` [B, C0, h, w] is
    added after the first convolution.
    Returns the decoder features of every block, coarse to fine.
    """

    def cross(block: nn.Module, hidden: Tensor) -> dict[str, Any]:
        if not getattr(block, "has_cross_attention", False):
            return {}
        known = {"encoder_hidden_states": text, "encoder_attention_mask": text_bias}
        told = {"cross_attention_kwargs": {"grid": hidden.shape[-2:]}} if getattr(block, "pooled", False) else {}
        return {**known, **told}

    hidden = unet.conv_in(sample) if detail is None else unet.conv_in(sample) + detail
    skips: tuple[Tensor, ...] = (hidden,)
    for block in unet.down_blocks:
        hidden, block_skips = block(hidden_states=hidden, temb=embedding, **cross(block, hidden))
        skips += block_skips
    if unet.mid_block is not None:
        hidden = unet.mid_block(hidden, embedding, **cross(unet.mid_block, hidden))
    features = []
    for i, block in enumerate(unet.up_blocks):
        count = len(block.resnets)
        skips, block_skips = skips[:-count], skips[-count:]
        known = cross(block, hidden)
        hidden = block(hidden_states=hidden, res_hidden_states_tuple=block_skips, temb=embedding, **known)
        if inject is not None:
            hidden = inject(i, hidden)
        features.append(hidden)
    return features


def decoder_widths(unet: UNet2DConditionModel) -> list[int]:
    """Channels of the features `run_unet` returns, coarse to fine."""
    return list(reversed(unet.config.block_out_channels))


def decoder_strides(unet: UNet2DConditionModel) -> list[int]:
    """How many latent pixels one pixel of each decoder feature covers, coarse to fine; the last one is 1."""
    strides = [1]
    for block in reversed(unet.up_blocks[1:]):
        strides.insert(0, strides[0] * (2 if block.upsamplers is not None else 1))
    return strides


def grid_ratio(unet: UNet2DConditionModel) -> int:
    """Latent cells along a side of the coarsest cell of the whole network."""
    return int(2 ** (len(unet.down_blocks) - 1))


class Reference(nn.Module):
    """Prompt-conditioned denoiser: `[z | m_t], t, text -> v`. Before training it equals the pretrained U-Net.

    noise_schedule: given when the U-Net predicts noise; its answer is then converted, so that all else sees v.
    """

    def __init__(self, unet: UNet2DConditionModel, pathway_heads: int, noise_schedule: Schedule | None = None) -> None:
        super().__init__()
        self.unet = unet
        self.noise_schedule = noise_schedule
        self.pathway = TextPathway(decoder_widths(unet), unet.config.cross_attention_dim, pathway_heads)
        self.kernel_slots: Slots = dict(PLAIN)

    def forward(
        self, latents: Tensor, timestep: Tensor, text: Tensor, token_mask: Tensor | None = None,
        trunk: Tensor | None = None, trunk_mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """latents [B, 8, h, w], timestep [B] int, text [B, L, D], token_mask [B, L] -> v [B, 4, h, w].

        trunk, trunk_mask: text that the U-Net's own cross-attention sees instead (prompt dropout); the pathway sees `text`.
        """
        asked, live = (text, token_mask) if trunk is None else (trunk, trunk_mask)
        bias = None if live is None else (~live).to(latents.dtype)[:, None] * -1e4
        features = run_unet(
            self.unet,
            latents,
            time_embedding(self.unet, timestep),
            asked,
            bias,
            inject=lambda scale, hidden: self.pathway(scale, hidden, text, token_mask),
        )
        out = self.unet.conv_out(self.unet.conv_act(self.unet.conv_norm_out(features[-1])))
        if self.noise_schedule is None:
            return out
        return self.noise_schedule.velocity_of_noise(latents[:, 4:], out, timestep)

    def sample(
        self, z: Tensor, text: Tensor, token_mask: Tensor, schedule: Schedule, steps: int, noise: Tensor | None = None
    ) -> Tensor:
        """Mask latents of K prompts for every picture: z [B, 4, h, w], text [K, L, D], token_mask [K, L], noise
        [B*K, 4, h, w] or None for the one-step mode -> [B*K, 4, h, w], row b*K + k."""
        b, k = len(z), len(text)
        rows, masks = text.repeat(b, 1, 1), token_mask.repeat(b, 1)
        return sample(lambda latents, t: self(latents, t, rows, masks), z, schedule, steps, noise, k, self.kernel_slots)
