"""The loss of the autoencoder: pictures, and masks drawn as pictures, come back as they were."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from digseg_engine.model.autoencoder import draw_mask, raw_latent
from digseg_engine.model.devices import device_of
from digseg_engine.training.loop import Parts, StageConfig, unwrap
from digseg_engine.training.objectives.noise import generator
from digseg_engine.worlds.pool import SceneBatches

CROP = 32
COLOUR_WEIGHT = 2.0  # grey alone is the easy part of a picture: what is left of the error counts twice
BUSY = 0.45  # a crop of a mask is drawn when its mean is within this of a half: one that is all in or all out teaches nothing
MASK_PART = 5  # at most one in so many of a batch is a mask


class AutoencoderLoss:
    """L1 + L2 reconstruction of crops and of masks drawn as -1/+1 pictures, with the same again on colour.

    The colour term (what is left of the error without its grey part) keeps the few latent channels from spending
    themselves on brightness alone. An autoencoder is local, so crops of 32 pixels teach as much as pictures.
    """

    def __init__(self, batches: SceneBatches, config: StageConfig) -> None:
        self.batches, self.config = batches, config

    def __call__(self, vae: nn.Module, step: int) -> tuple[Tensor, Parts]:
        batch = self.batches.batch(step, self.config.batch, 4).to(device_of(vae))
        masks = self._crop(batch.masks.flatten(0, 1), step)
        busy = masks[(masks.mean((1, 2)) - 0.5).abs() < BUSY][: self.config.batch // MASK_PART]
        drawn = draw_mask(busy)
        x = torch.cat([self._crop(batch.images, step)[: self.config.batch - len(busy)], drawn])
        model = unwrap(vae)
        error = model.decode(raw_latent(model, x)).sample - x
        colour = error - error.mean(1, keepdim=True)
        losses = [e.abs().mean() + e.square().mean() for e in (error, colour)]
        parts = {"recon": losses[0].detach(), "colour": losses[1].detach()}
        return losses[0] + COLOUR_WEIGHT * losses[1], parts

    def _crop(self, x: Tensor, step: int) -> Tensor:
        """The same random window of `CROP` pixels for the whole batch: [..., H, W] -> [..., size, size]."""
        size = CROP
        random = generator(self.batches.seed, step)
        top, left = (int(torch.randint(0, n - size + 1, (), generator=random)) for n in x.shape[-2:])
        return x[..., top : top + size, left : left + size]
