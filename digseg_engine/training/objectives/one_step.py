"""Stage B of the reference: the zero slot at the last timestep, judged by its decoded mask.

Garcia et al. 2024 (arXiv 2409.11355) fine-tune depth this way.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from digseg_engine.model.autoencoder import decode_value
from digseg_engine.model.devices import device_of
from digseg_engine.model.sampler import Schedule
from digseg_engine.training.loop import Parts
from digseg_engine.training.objectives.losses import latent_error, mask_loss
from digseg_engine.training.objectives.noise import generator
from digseg_engine.training.objectives.pairs import PairSource

# Logits of a decoded value in training. The sampler's own, 2 atanh(value), must be cut at +-0.999: a pixel that is wrong and sure
# would have no gradient, and one just inside the cut a gradient of a thousand.
SHARPNESS = 6.0


class OneStepLoss:
    """Stage B: the decoded one-step mask against the truth, BCE + Dice, and a little of the latent error.

    The mask slot is zero; `noise` fills it with noise instead (an ablation).
    """

    def __init__(self, source: PairSource, schedule: Schedule, latent_weight: float = 0.5, noise: bool = False) -> None:
        self.source, self.schedule, self.latent_weight, self.noise = source, schedule, latent_weight, noise

    def __call__(self, reference: nn.Module, step: int) -> tuple[Tensor, Parts]:
        random, device = generator(self.source.batches.seed, step), device_of(reference)
        pairs = self.source.draw(step, random, device)
        shape = pairs.clean.shape
        slot = torch.randn(shape, generator=random).to(device) if self.noise else torch.zeros(shape, device=device)
        t = torch.full((len(slot),), len(self.schedule) - 1, device=device)
        v = reference(torch.cat([pairs.z, slot], 1), t, *pairs.conditioning)
        clean = self.schedule.clean(slot, v, t)
        logits = SHARPNESS * decode_value(self.source.vae, clean)
        bce, dice = mask_loss(logits[:, None], pairs.masks[:, None], pairs.valid)
        close = latent_error((clean - pairs.clean).square(), pairs.valid).mean()
        loss = 2 * bce + dice + self.latent_weight * close
        return loss, {"bce": bce.detach(), "dice": dice.detach()}
