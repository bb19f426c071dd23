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
from digseg_engine.model.devices import use_kernels
from digseg_engine.model.pretrained import Checkpoint
from digseg_engine.model.quality import Figures
from digseg_engine.model.sampler import denoise_from

MOST_STEPS = 4
START = 0.5  # share of the schedule the student's mask is noised to


def refine_timesteps(steps: int, train_steps: int) -> list[int]:
    """`steps` timesteps from START down. Raises UsageError outside 1..MOST_STEPS."""
    if not 1 <= steps <= MOST_STEPS:
        raise UsageError(f"refinement steps must be 1 to {MOST_STEPS}, got {steps}")
    first = START * train_steps
    return [round(first - i * first / steps) - 1 for i in range(steps)]


class Refiner:
    """The reference of a checkpoint on a device, float32. Thread-safe: nothing is changed after it is made.

    `figures`: what the checkpoint was measured to reach, None when nobody measured. copied: a device beside the CPU gets
    networks of its own with our kernels; otherwise the checkpoint's are used as they are, on the device where they are.
    `detail` says where it runs and, on an NVIDIA GPU, with which kernels.
    """

    def __init__(
        self, checkpoint: Checkpoint, device: Any, figures: Figures | None = None, copied: bool = True
    ) -> None:
        self.figures = figures
        self.device, self.schedule = device, checkpoint.schedule
        parts = (checkpoint.vae, checkpoint.text_encoder, checkpoint.reference)
        if copied and torch.device(device).type != "cpu":  # the shared checkpoint stays where it is
            parts = copy.deepcopy(parts)
        self.vae, self.text_encoder, self.reference = (part.to(device) for part in parts)
        self.detail = ", ".join(filter(None, (str(device), use_kernels(self.reference) if copied else "")))

    def allow(self, steps: int) -> None:
        """Raises UsageError when refinement was measured to be no better than the student's own masks."""
        if self.figures is not None:
            self.figures.allow_refine(steps)

    @torch.inference_mode()
    def __call__(self, image: Any, ids: Any, mask: Any, logits: Any, steps: int, seed: int) -> Any:
        """NumPy image [1, 3, H, W], token ids and mask [K, L], student logits [K, h', w'] -> logits [K, H, W]."""
        image, ids, mask, logits = (torch.from_numpy(array).to(self.device) for array in (image, ids, mask, logits))
        return self.refine(image, ids, mask, logits, steps, seed).cpu().numpy()

    def refine(self, picture: Tensor, ids: Tensor, mask: Tensor, logits: Tensor, steps: int, seed: int) -> Tensor:
        """As a call, with tensors on this device, in and out."""
        times = refine_timesteps(steps, len(self.schedule))
        text = self.text_encoder(ids).last_hidden_state  # [K, L, D]
        z = encode_image(self.vae, picture)  # [1, 4, h, w]
        student = F.interpolate(logits[:, None], size=picture.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
        m = self._noised(encode_mask(self.vae, student.sigmoid()), times[0], seed)  # [K, 4, h, w]
        m = denoise_from(
            lambda latents, t: self.reference(latents, t, text, mask),
            z, m, self.schedule, times, len(m), self.reference.kernel_slots,
        )  # fmt: skip
        return decode_mask(self.vae, m)  # [K, H, W]

    def _noised(self, clean: Tensor, t: int, seed: int) -> Tensor:
        """One noise for all prompts, so that a prompt's mask does not depend on which others are refined; drawn on the
        CPU, so that it does not depend on the device either."""
        noise = torch.randn(clean.shape[1:], generator=torch.Generator().manual_seed(seed)).to(clean.device)
        times = torch.full((len(clean),), t, device=clean.device)
        return self.schedule.add_noise(clean, noise.expand_as(clean), times)
