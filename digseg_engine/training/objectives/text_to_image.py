"""Pretraining of the trunk as what Stable Diffusion is: a text-to-image denoiser, on captions made of labels. No masks.

A caption names what is in a picture ("a photo of road, water and building"); the U-Net is told it through its own
cross-attention and predicts v of the picture's noisy latents (Salimans & Ho 2022), at timesteps drawn uniformly. Some captions
are empty, as classifier-free guidance has them (Ho & Salimans 2022).
"""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from digseg_engine.data.batch import Batch, Batches
from digseg_engine.data.wordings import encode_text
from digseg_engine.model.devices import device_of
from digseg_engine.model.reference import run_unet, time_embedding
from digseg_engine.model.sampler import Schedule
from digseg_engine.text import PromptTokenizer
from digseg_engine.training.loop import Parts, StageConfig
from digseg_engine.training.objectives.noise import generator

EMPTY_SHARE = 0.1  # of the captions
LONGEST = 4  # names in a caption; text encoders read some dozens of tokens


class Denoiser(nn.Module):
    """A U-Net asked for pictures: noisy latents, timestep, caption -> v. A U-Net that is wide enough for a mask gets an empty
    one."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, noisy: Tensor, timestep: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """noisy [B, 4, h, w], timestep [B] int, text [B, L, D], mask [B, L] bool -> v [B, 4, h, w]."""
        slots = torch.cat([noisy, torch.zeros_like(noisy)], 1) if self.unet.conv_in.in_channels == 8 else noisy
        bias = (~mask).to(noisy.dtype)[:, None] * -1e4
        features = run_unet(self.unet, slots, time_embedding(self.unet, timestep), text, bias)
        out: Tensor = self.unet.conv_out(self.unet.conv_act(self.unet.conv_norm_out(features[-1])))
        return out


class TextToImageLoss:
    """Mean squared error of v on a batch's pictures; text encoder and autoencoder stay frozen."""

    def __init__(
        self, batches: Batches, text: CLIPTextModel, tokenizer: PromptTokenizer, schedule: Schedule, config: StageConfig
    ) -> None:  # fmt: skip
        self.batches, self.text, self.tokenizer, self.schedule, self.config = batches, text, tokenizer, schedule, config

    def __call__(self, denoiser: nn.Module, step: int) -> tuple[Tensor, Parts]:
        random, device = generator(self.batches.seed, step), device_of(denoiser)
        batch = self.batches.batch(step, self.config.batch, self.config.prompts).to(device)
        with torch.no_grad():
            text, mask = encode_text(self.text, self.tokenizer, captions(batch, random))
        clean = batch.latents
        t = torch.randint(0, len(self.schedule), (len(clean),), generator=random).to(device)
        noise = torch.randn(clean.shape, generator=random).to(device)
        v = denoiser(self.schedule.add_noise(clean, noise, t), t, text, mask)
        loss = (v - self.schedule.velocity(clean, noise, t)).square().mean()
        return loss, {"v_mse": loss.detach()}


def captions(batch: Batch, random: torch.Generator) -> list[str]:
    """What every picture shows, in the words that the batch asks for it; some are empty."""
    present = batch.present.cpu()
    said = []
    for row in present:
        shown = [batch.queries[k] for k in torch.randperm(len(row), generator=random).tolist() if row[k]]
        names = list(dict.fromkeys(query.name for query in shown))[:LONGEST]
        dropped = float(torch.rand((), generator=random)) < EMPTY_SHARE
        said.append("" if dropped or not names else f"a photo of {_listed(names)}")
    return said


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
