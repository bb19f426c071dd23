"""What is evaluated: student, reference at N steps or exported bundle, all as picture + prompts -> full-size logits."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from digseg_engine.bundle import MANIFEST, read_manifest
from digseg_engine.data.wordings import encode_text
from digseg_engine.errors import UsageError
from digseg_engine.images import fit, unfit
from digseg_engine.model.autoencoder import decode_mask, encode_image
from digseg_engine.model.devices import device_of
from digseg_engine.model.pretrained import BUNDLED, Checkpoint, load_checkpoint
from digseg_engine.model.student import FoldedText

Logits = NDArray[np.float32]
Predict = Callable[[NDArray[np.uint8], list[str]], Logits]  # [H, W, 3], K prompts -> [K, H, W], 0 is the border
Rule = Literal["each", "strongest", "strongest or none"]
CHUNK = 16  # (picture, prompt) pairs that the reference denoises together


def choose_predictor(
    model: Path | None, reference_steps: int = 0, size: int | None = None, device: str | None = None
) -> tuple[Predict, str, int]:
    """(predictor, its name, working size) for a checkpoint or bundle directory; None = the bundled checkpoint.

    device: "cpu", "cuda", "cuda:1"; None is the CPU for a checkpoint and the engine's choice for a bundle. Raises
    UsageError for one that is not there.
    """
    if model is not None and (model / MANIFEST).is_file():
        if reference_steps:
            raise UsageError("--reference-steps needs a checkpoint; a bundle holds the student only")
        size = size or int(read_manifest(model)["model"]["image_size"])
        return bundle_predictor(model, size, device), f"bundle {model.name}", size
    checkpoint = on_device(load_checkpoint(model), device or "cpu")
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

    def predict(image: NDArray[np.uint8], prompts: list[str]) -> Logits:
        canvas = fit(image, working, checkpoint.stride)
        logits = student_logits(checkpoint, torch.from_numpy(canvas.pixels), fold(tuple(prompts)))
        return unfit(logits[0].float().cpu().numpy(), canvas)

    return predict


@torch.no_grad()
def student_logits(checkpoint: Checkpoint, pixels: Tensor, text: FoldedText) -> Tensor:
    """Logits [1, K, h, w] of pixels [1, 3, H, W] from anywhere, on the model's device."""
    pixels = pixels.to(device_of(checkpoint.student))
    return checkpoint.student(pixels, encode_image(checkpoint.vae, pixels), text)


@torch.no_grad()
def reference_logits(
    checkpoint: Checkpoint, pixels: Tensor, prompts: list[str], steps: int, from_noise: bool
) -> Tensor:
    """Logits [K, H, W] of the reference for pixels [1, 3, H, W] from anywhere, on the model's device."""
    latent = encode_image(checkpoint.vae, pixels.to(device_of(checkpoint.vae)))
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0)).to(latent)
    found = []
    for start in range(0, len(prompts), CHUNK):
        text, mask = encode_text(checkpoint.text_encoder, checkpoint.tokenizer, prompts[start : start + CHUNK])
        slot = noise.expand(len(text), -1, -1, -1) if from_noise else None
        m = checkpoint.reference.sample(latent, text, mask, checkpoint.schedule, steps, slot)
        found.append(decode_mask(checkpoint.vae, m))
    return torch.cat(found)


def on_device(checkpoint: Checkpoint, device: str) -> Checkpoint:
    """The checkpoint with all its parts there. Raises UsageError for a device that is not there."""
    try:
        for part in (checkpoint.vae, checkpoint.text_encoder, checkpoint.reference, checkpoint.student):
            part.to(device)
    except (RuntimeError, AssertionError) as error:
        said = " ".join(str(error).split())[:120]
        raise UsageError(
            f"device {device!r} cannot be used: {said}; expected cpu, or cuda where torch sees one"
        ) from error
    return checkpoint


def reference_predictor(
    checkpoint: Checkpoint, steps: int, size: int | None = None, noise: bool | None = None
) -> Predict:
    """`steps` passes of the reference for every (picture, prompt) pair, from noise or (one step, unless `noise` says
    otherwise) from the zero slot."""
    working, from_noise = size or checkpoint.config.image_size, steps > 1 if noise is None else noise

    def predict(image: NDArray[np.uint8], prompts: list[str]) -> Logits:
        canvas = fit(image, working, checkpoint.stride)
        logits = reference_logits(checkpoint, torch.from_numpy(canvas.pixels), prompts, steps, from_noise)
        return unfit(logits.float().cpu().numpy(), canvas)

    return predict


def bundle_predictor(folder: Path, size: int, device: str | None = None) -> Predict:
    """An exported bundle through the engine's own runtime."""
    from digseg_engine.runtime.engine import Engine

    engine = Engine.load(folder, device=device)

    def predict(image: NDArray[np.uint8], prompts: list[str]) -> Logits:
        canvas = fit(image, size, engine.stride)
        return unfit(engine.segment(image, prompts, size=size).logits, canvas)

    return predict


def choose_labels(logits: Logits, rule: Rule) -> NDArray[np.int64]:
    """Logits [K, H, W] -> number of the strongest prompt, [H, W]; -1 where none is above 0, unless the rule is "strongest".

    "strongest or none" is the runtime's rule `strongest` at threshold 0.5 (`runtime.labels`).
    """
    best = logits.argmax(0)
    return best if rule == "strongest" else np.where(logits.max(0) > 0, best, -1)


def decide(logits: Logits, rule: Rule) -> NDArray[np.bool_]:
    """Logits -> masks [K, H, W]: every prompt above 0 ("each"), the strongest alone, or the strongest where it is above 0."""
    if rule == "each":
        return np.asarray(logits > 0)
    return np.asarray(choose_labels(logits, rule) == np.arange(len(logits))[:, None, None])
