"""Changes of pictures that leave their labels true: colour and blur here, on the training's device; rotation and scale are
properties of a crop's window (`crops.draw_window`).

By kornia's functions rather than its random modules: those draw from PyTorch's global generator, while every factor here is
drawn from the seed and the step. Hue stays as it is, because prompts name colours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from digseg_engine.errors import UsageError
from digseg_engine.extras import require

KINDS = ("colour", "scale", "rotation", "blur")
FACTOR = 1.25  # brightness, contrast and saturation change by a factor from 1/FACTOR to FACTOR
BLURRED = 0.25  # share of the pictures
SIGMA = (0.3, 1.5)  # pixels of the crop; chosen by hand, as are the other strengths
KERNEL = 9  # pixels: three standard deviations on either side of the strongest


def parse_kinds(text: str) -> tuple[str, ...]:
    """ "colour,blur" -> those, in a fixed order. Raises UsageError for an unknown one."""
    asked = [part.strip() for part in text.split(",") if part.strip()]
    check_kinds(asked)
    return tuple(kind for kind in KINDS if kind in asked)


def check_kinds(kinds: Sequence[str]) -> None:
    strange = [kind for kind in kinds if kind not in KINDS]
    if strange:
        raise UsageError(
            f"unknown augmentation {strange[0]!r}; expected some of {', '.join(KINDS)}, separated by commas"
        )


def check_installed(kinds: Sequence[str]) -> None:
    """Raises MissingPackageError where colour or blur is asked for and kornia is not there."""
    if {"colour", "blur"} & set(kinds):
        require("augmentation of colour and blur", "augment")


def augment(images: Tensor, kinds: Sequence[str], rng: np.random.Generator) -> Tensor:
    """Pictures [B, 3, S, S] in -1..1 with colour and blur changed, each by factors of its own. All factors are drawn, whatever
    `kinds` are, so that one kind is the same with and without the other."""
    factors = FACTOR ** rng.uniform(-1, 1, (3, len(images)))
    sigmas = np.where(rng.random(len(images)) < BLURRED, rng.uniform(*SIGMA, len(images)), 0)
    if "colour" in kinds:
        images = _recoloured(images / 2 + 0.5, factors) * 2 - 1
    if "blur" in kinds and sigmas.any():
        images = _blurred(images, sigmas)
    return images


def _recoloured(images: Tensor, factors: np.ndarray) -> Tensor:
    from kornia.enhance import adjust_brightness_accumulative, adjust_contrast, adjust_saturation_with_gray_subtraction

    brightness, contrast, saturation = torch.from_numpy(factors).to(images)
    images = adjust_brightness_accumulative(images, brightness)
    images = adjust_contrast(images, contrast)
    return adjust_saturation_with_gray_subtraction(images, saturation)


def _blurred(images: Tensor, sigmas: np.ndarray) -> Tensor:
    from kornia.filters import gaussian_blur2d

    some = torch.from_numpy(np.flatnonzero(sigmas)).to(images.device)
    widths = torch.from_numpy(sigmas[sigmas > 0]).to(images)[:, None].expand(-1, 2)
    soft = gaussian_blur2d(images[some], (KERNEL, KERNEL), widths, "replicate")
    return images.index_copy(0, some, soft)
