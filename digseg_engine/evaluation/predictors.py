"""What is evaluated: student, reference at N steps or exported bundle, all as picture + prompts -> answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from digseg_engine.bundle import MANIFEST, read_manifest
from digseg_engine.contract import ABSENT
from digseg_engine.data.wordings import encode_text
from digseg_engine.errors import UsageError
from digseg_engine.evaluation.answers import Answer, View
from digseg_engine.evaluation.views import WHOLE, Views
from digseg_engine.images import Frame, fit
from digseg_engine.model.autoencoder import decode_mask, encode_image
from digseg_engine.model.devices import device_of
from digseg_engine.model.pretrained import BUNDLED, Checkpoint, load_checkpoint
from digseg_engine.model.student import FoldedText
from digseg_engine.working_size import WorkingSize, working_size

Rgb = NDArray[np.uint8]
Predict = Callable[[Rgb, list[str]], Answer]  # [H, W, 3], K prompts -> logits of K prompts
Size = int | WorkingSize  # pixels of the longer side
Rule = Literal["each", "strongest", "strongest or none"]
CHUNK = 16  # (picture, prompt) pairs that the reference denoises together


@dataclass(frozen=True)
class Said:
    """What a model says about a view: logits [K, h, w], how the view lies in them, and which prompts its presence readout holds
    to be there [K] (None without one)."""

    planes: Tensor
    frame: Frame
    present: NDArray[np.bool_] | None = None


Ask = Callable[[Rgb, list[str], int], Said]  # [H, W, 3], K prompts, pixels of the longer side


def predictor(ask: Ask, size: Size, stride: int, views: Views = WHOLE) -> Predict:
    """Answers of `ask` to the views of a picture; size: what a view is usually worked at."""
    usual = WorkingSize(size, size) if isinstance(size, int) else size

    def predict(image: Rgb, prompts: list[str]) -> Answer:
        shape = int(image.shape[0]), int(image.shape[1])
        found, present = list[View](), None
        for (left, top, right, bottom), longer in views.boxes(shape, usual.of(*shape), stride):
            part = image[top:bottom, left:right]
            for mirrored in (False, True) if views.flip else (False,):
                said = ask(np.ascontiguousarray(part[:, ::-1]) if mirrored else part, prompts, longer)
                found.append(View.of_frame(said.planes.float(), said.frame, left, top, mirrored))
                if said.present is not None:  # what is in one view is in the picture
                    present = said.present if present is None else present | said.present
        return Answer(shape, tuple(found), present)

    return predict


def choose_predictors(
    model: Path | None, reference_steps: Sequence[int] = (), size: int | None = None, device: str | None = None,
    views: Views = WHOLE, backend: str | None = None,
) -> tuple[dict[int, Predict], str, WorkingSize]:  # fmt: skip
    """({steps: predictor}, what they are, working size) for a checkpoint or bundle directory; None = the bundled checkpoint.

    reference_steps: of the reference, one predictor for each; none is the student, under the key 0. device: "cpu", "cuda",
    "cuda:1"; None is the CPU for a checkpoint and the engine's choice for a bundle. backend: of a bundle alone; None is "auto".
    Raises UsageError for a device that is not there, and for what the model cannot have.
    """
    if model is not None and (model / MANIFEST).is_file():
        if reference_steps:
            raise UsageError("--reference-steps needs a checkpoint; a bundle holds the student only")
        working = working_size(read_manifest(model)) if size is None else WorkingSize(size, size)
        predict = bundle_predictor(model, working, device, views, backend or "auto")
        return {0: predict}, f"bundle {model.name}" + (f", {backend}" if backend else ""), working
    if backend is not None:
        raise UsageError(f"--backend {backend} runs bundles, and {(model or BUNDLED).name} is a checkpoint; export it first, or "
                         "leave --backend out")  # fmt: skip
    checkpoint = on_device(load_checkpoint(model), device or "cpu")
    name, working = (model or BUNDLED).name, checkpoint.config.working_size if size is None else WorkingSize(size, size)
    if reference_steps:
        several = {n: reference_predictor(checkpoint, n, working, views=views) for n in reference_steps}
        return (
            several,
            f"{name}, reference, {', '.join(map(str, several))} step{'s' if max(several) > 1 else ''}",
            working,
        )
    return {0: student_predictor(checkpoint, working, views)}, f"{name}, student, one step", working


def student_predictor(
    checkpoint: Checkpoint, size: Size | None = None, views: Views = WHOLE, readout: bool = True
) -> Predict:  # fmt: skip
    """One pass of the student for all prompts, at `size` (default: the checkpoint's own), as the engine runs it: what its
    presence readout says is not there gets no mask. readout: False leaves the readout out, where masks alone are judged."""
    student, threshold = checkpoint.student, checkpoint.config.presence_threshold
    reads = readout and bool(student.config.presence_width)

    @lru_cache(maxsize=4)
    def fold(prompts: tuple[str, ...]) -> FoldedText:
        return student.fold_text(*encode_text(checkpoint.text_encoder, checkpoint.tokenizer, list(prompts)))

    @torch.no_grad()
    def ask(image: Rgb, prompts: list[str], longer: int) -> Said:
        canvas, text = fit(image, longer, checkpoint.stride), fold(tuple(prompts))
        pixels = torch.from_numpy(canvas.pixels).to(device_of(student))
        encoding = student.encode(*student.describe(pixels, encode_image(checkpoint.vae, pixels)))
        planes = student.answer(encoding, text)[0]
        if not reads:
            return Said(planes, canvas.frame)
        presence = student.presence(encoding, text)[0]
        if threshold is not None:
            planes[presence < threshold] = ABSENT
        return Said(planes, canvas.frame, (presence >= (threshold or 0.0)).cpu().numpy())

    return predictor(ask, size or checkpoint.config.working_size, checkpoint.stride, views)


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
    checkpoint: Checkpoint, steps: int, size: Size | None = None, noise: bool | None = None, views: Views = WHOLE
) -> Predict:
    """`steps` passes of the reference for every (picture, prompt) pair, from noise or (one step, unless `noise` says
    otherwise) from the zero slot."""
    from_noise = steps > 1 if noise is None else noise

    def ask(image: Rgb, prompts: list[str], longer: int) -> Said:
        canvas = fit(image, longer, checkpoint.stride)
        planes = reference_logits(checkpoint, torch.from_numpy(canvas.pixels), prompts, steps, from_noise)
        return Said(planes, canvas.frame)

    return predictor(ask, size or checkpoint.config.working_size, checkpoint.stride, views)


def bundle_predictor(
    folder: Path, size: Size, device: str | None = None, views: Views = WHOLE, backend: str = "auto"
) -> Predict:
    """An exported bundle through the engine's own runtime."""
    from digseg_engine.runtime.engine import Engine
    from digseg_engine.runtime.pipeline import picture_logits, picture_map

    engine = Engine.load(folder, backend, device=device)
    names = engine.source.vocabulary

    def ask_map(image: Rgb, prompts: list[str], longer: int) -> Said:
        """Of a bundle that answers its label map alone: 1 where the map shows a name, -1 elsewhere."""
        label_map, presence, there, frame = picture_map(engine, image, prompts, longer)
        shown = label_map[None] == np.arange(1, len(prompts) + 1)[:, None, None]
        planes = torch.from_numpy(np.where(shown, np.float32(1), np.float32(-1)))
        if presence is None:
            return Said(planes, frame)
        return Said(planes, frame, presence >= 0.5 if engine.gate.threshold is None else there)

    def ask(image: Rgb, prompts: list[str], longer: int) -> Said:
        found, frame = picture_logits(engine, image, prompts, longer)
        planes = torch.from_numpy(np.array(found.logits, np.float32))
        if found.presence is None:
            return Said(planes, frame)
        return Said(planes, frame, found.presence >= 0.5 if engine.gate.threshold is None else found.there)

    return predictor(ask_map if names is not None and names.labels_only else ask, size, engine.stride, views)


def choose_labels(logits: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """Logits [K, H, W] -> the strongest one and the number of its prompt, [H, W] each; -1 where none is above 0, unless the
    rule is "strongest". Of equal ones the first wins.

    "strongest or none" is the runtime's rule `strongest` at threshold 0.5 (`runtime.labels`).
    """
    best, number = _strongest(logits) if logits.device.type == "cpu" else logits.max(0)
    return best, number if rule == "strongest" else torch.where(best > 0, number, -1)


def _strongest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """`logits.max(0)`, plane by plane: the reduction over the first axis goes through memory across its lines."""
    planes = logits.numpy()
    best, number = planes[0].copy(), np.zeros(planes.shape[1:], np.int32)
    for k in range(1, len(planes)):
        np.copyto(number, k, where=planes[k] > best)
        np.maximum(best, planes[k], out=best)
    return torch.from_numpy(best), torch.from_numpy(number)


def decide(answer: Answer, rule: Rule) -> NDArray[np.bool_]:
    """Masks [K, H, W]: every prompt above 0 ("each"), the strongest alone, or the strongest where it is above 0."""
    if rule == "each":
        return answer.masks()
    labels = torch.cat([choose_labels(logits, rule)[1] for _, logits in answer.strips()]).cpu().numpy()
    return np.asarray(labels == np.arange(answer.count)[:, None, None])
