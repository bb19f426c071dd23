"""Quality mode: a few steps of the prompt-conditioned reference, started from the student's masks.

The mask latent of the student is noised to the middle of the schedule and denoised again (as SDEdit does with pictures,
Meng et al. 2022), so the reference corrects a mask instead of inventing one. The same seed gives the same masks.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from digseg_engine.errors import UsageError
from digseg_engine.model.autoencoder import decode_mask, encode_image, encode_mask
from digseg_engine.model.pretrained import Checkpoint
from digseg_engine.model.sampler import ddim_weights, plain_concat

MOST_STEPS = 4
START = 0.5  # share of the schedule the student's mask is noised to


def refine_timesteps(steps: int, train_steps: int) -> list[int]:
    """`steps` timesteps from START down. Raises UsageError outside 1..MOST_STEPS."""
    if not 1 <= steps <= MOST_STEPS:
        raise UsageError(f"refinement steps must be 1 to {MOST_STEPS}, got {steps}")
    first = START * train_steps
    return [round(first - i * first / steps) - 1 for i in range(steps)]


class Refiner:
    """The reference of a checkpoint on a device, float32. Thread-safe: nothing is changed after it is made."""

    def __init__(self, checkpoint: Checkpoint, device: Any) -> None:
        self.device, self.schedule = device, checkpoint.schedule
        parts = (checkpoint.vae, checkpoint.text_encoder, checkpoint.reference)
        if str(device) != "cpu":  # the shared checkpoint stays where it is
            parts = copy.deepcopy(parts)
        self.vae, self.text_encoder, self.reference = (part.to(device) for part in parts)

    @torch.inference_mode()
    def __call__(self, image: Any, ids: Any, mask: Any, logits: Any, steps: int, seed: int) -> Any:
        """NumPy image [1, 3, H, W], token ids and mask [K, L], student logits [K, h', w'] -> logits [K, H, W]."""
        times = refine_timesteps(steps, len(self.schedule))
        picture, ids, mask, logits = (torch.from_numpy(array).to(self.device) for array in (image, ids, mask, logits))
        text = self.text_encoder(ids).last_hidden_state
        z = encode_image(self.vae, picture)  # [1, 4, h, w]
        student = F.interpolate(logits[:, None], size=picture.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
        m = self._noised(encode_mask(self.vae, student.sigmoid()), times[0], seed)  # [K, 4, h, w]
        for t, t_next in zip(times, [*times[1:], None]):
            steps_at = torch.full((len(m),), t, device=self.device)
            v = self.reference(plain_concat(z, m, prompts=len(m)), steps_at, text, mask)
            a, b = ddim_weights(self.schedule, t, t_next)
            m = a * m + b * v
        return decode_mask(self.vae, m).cpu().numpy()

    def _noised(self, clean: Tensor, t: int, seed: int) -> Tensor:
        """One noise for all prompts, so that a prompt's mask does not depend on which others are refined."""
        noise = torch.randn(clean.shape[1:], generator=torch.Generator().manual_seed(seed)).to(clean.device)
        return self.schedule.add_noise(clean, noise.expand_as(clean), torch.full((len(clean),), t))
