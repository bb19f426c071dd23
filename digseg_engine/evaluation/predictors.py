"""What is evaluated: student, reference at N steps or exported bundle, all as picture + prompts -> full-size logits."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from digseg_engine.bundle import MANIFEST, read_manifest
from digseg_engine.data.wordings import encode_text
from digseg_engine.errors import UsageError
from digseg_engine.images import fit, unfit
from digseg_engine.model.autoencoder import decode_mask, encode_image
from digseg_engine.model.pretrained import BUNDLED, Checkpoint, load_checkpoint
from digseg_engine.model.student import FoldedText

Logits = NDArray[np.float32]
Predict = Callable[[NDArray[np.uint8], list[str]], Logits]  # [H, W, 3], K prompts -> [K, H, W], 0 is the border
Rule = Literal["each", "strongest", "strongest or none"]
CHUNK = 16  # (picture, prompt) pairs that the reference denoises together


def choose_predictor(model: Path | None, reference_steps: int = 0, size: int | None = None) -> tuple[Predict, str, int]:
    """(predictor, its name, working size) for a checkpoint or bundle directory; None = the bundled checkpoint."""
    if model is not None and (model / MANIFEST).is_file():
        if reference_steps:
            raise UsageError("--reference-steps needs a checkpoint; a bundle holds the student only")
        size = size or int(read_manifest(model)["model"]["image_size"])
        return bundle_predictor(model, size), f"bundle {model.name}", size
    checkpoint = load_checkpoint(model)
    name, size = (model or BUNDLED).name, size or checkpoint.config.image_size
    if reference_steps:
        kind = f"{name}, reference, {reference_steps} step{'s' if reference_steps > 1 else ''}"
        return reference_predictor(checkpoint, reference_steps, size), kind, size
    return student_predictor(checkpoint, size), f"{name}, student, one step", size


def student_predictor(checkpoint: Checkpoint, size: int | None = None) -> Predict:
    """One pass of the student for all prompts, at `size` pixels of the longer side."""
    student, working = checkpoint.student, size or checkpoint.config.image_size

    @lru_cache(maxsize=4)
    def fold(prompts: tuple[str, ...]) -> FoldedText:
        return student.fold_text(*encode_text(checkpoint.text_encoder, checkpoint.tokenizer, list(prompts)))

    @torch.no_grad()
    def predict(image: NDArray[np.uint8], prompts: list[str]) -> Logits:
        canvas = fit(image, working, checkpoint.stride)
        pixels = torch.from_numpy(canvas.pixels)
        logits = student(pixels, encode_image(checkpoint.vae, pixels), fold(tuple(prompts)))
        return unfit(logits[0].numpy(), canvas)

    return predict


def reference_predictor(
    checkpoint: Checkpoint, steps: int, size: int | None = None, noise: bool | None = None
) -> Predict:
    """`steps` passes of the reference for every (picture, prompt) pair, from noise or (one step, unless `noise` says
    otherwise) from the zero slot."""
    working, from_noise = size or checkpoint.config.image_size, steps > 1 if noise is None else noise

    @torch.no_grad()
    def predict(image: NDArray[np.uint8], prompts: list[str]) -> Logits:
        canvas = fit(image, working, checkpoint.stride)
        one = encode_image(checkpoint.vae, torch.from_numpy(canvas.pixels))
        start_noise = torch.randn(one.shape, generator=torch.Generator().manual_seed(0))
        found = []
        for start in range(0, len(prompts), CHUNK):
            text, mask = encode_text(checkpoint.text_encoder, checkpoint.tokenizer, prompts[start : start + CHUNK])
            slot = start_noise.expand(len(text), -1, -1, -1) if from_noise else None
            m = checkpoint.reference.sample(one, text, mask, checkpoint.schedule, steps, slot)
            found.append(decode_mask(checkpoint.vae, m))
        return unfit(torch.cat(found).numpy(), canvas)

    return predict


def bundle_predictor(folder: Path, size: int) -> Predict:
    """An exported bundle through the engine's own runtime."""
    from digseg_engine.runtime.engine import Engine

    engine = Engine.load(folder)

    def predict(image: NDArray[np.uint8], prompts: list[str]) -> Logits:
        canvas = fit(image, size, engine.stride)
        return unfit(engine.segment(image, prompts, size=size).logits, canvas)

    return predict


def decide(logits: Logits, rule: Rule) -> NDArray[np.bool_]:
    """Logits -> masks [K, H, W]: every prompt above 0 ("each"), the strongest alone, or the strongest where it is above 0."""
    if rule == "each":
        return np.asarray(logits > 0)
    masks = logits.argmax(0) == np.arange(len(logits))[:, None, None]
    return np.asarray(masks if rule == "strongest" else masks & (logits > 0))
