"""The pipeline: pictures and prompts in, masks out, as one function of numbered steps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from digseg_engine.errors import InputError, UsageError
from digseg_engine.images import Canvas, Frame, Picture, fit, unfit_plane
from digseg_engine.runtime.backends import Array
from digseg_engine.runtime.labels import USUAL, Rules, label
from digseg_engine.runtime.prompts import Prepared
from digseg_engine.runtime.result import About, Segmentation
from digseg_engine.text import check_prompts

if TYPE_CHECKING:
    from digseg_engine.runtime.engine import Engine


@dataclass(frozen=True)
class Quality:
    """refine: how many of the most confident prompts the reference goes over again; steps: its sampling steps, 1 to 4;
    force: also with a checkpoint whose quality.json says that it does not help."""

    refine: int = 0
    steps: int = 4
    seed: int = 0
    force: bool = False


@dataclass(frozen=True)
class Options:
    """What `segment`, `segment_batch` and `stream` are all asked with."""

    size: int | None = None
    quality: Quality = Quality()
    rules: Rules = USUAL
    against: tuple[str, ...] = ()  # contrast prompts: they compete for pixels and are not returned


class Clock:
    """Seconds per step, shared equally by the pictures of a batch."""

    def __init__(self, pictures: int) -> None:
        self.seconds: dict[str, float] = {}
        self._share, self._last = max(1, pictures), time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self._last = (now - self._last) / self._share, now


def segment_pictures(
    engine: Engine, pictures: list[Picture], prompts: Sequence[str], options: Options, clock: Clock
) -> list[Segmentation]:
    """The pipeline. The same prompts about B pictures, each [H, W, 3] of its own size."""
    quality = options.quality
    # 1 check the request
    texts = check_prompts(prompts)
    engine.prompts.check_owner(prompts)
    rivals = contrasts(texts, options.against)
    _check_size(engine, options.size)
    if quality.refine < 0:
        raise UsageError(f"the number of prompts to refine must be 0 or more, got {quality.refine}")
    reference = engine.reference() if quality.refine else None
    if reference is not None and not quality.force:
        reference.allow(quality.steps)
    # 2 fit the pictures
    canvases = [_fit(engine, picture, options.size) for picture in pictures]  # B x pixels [1, 3, Hc, Wc]
    clock.lap("fit")
    # 3 prompts, encoded once each
    text = engine.prompts.fold(prompts if isinstance(prompts, Prepared) and not rivals else texts + rivals)
    # [K, S, H, d, L], [K, S, H, L, Co], [K, L], contrast prompts behind the others
    clock.lap("text")
    # 4 the model: every picture once, all prompts together
    everything, notes = _answer(engine, canvases, *text)  # B x [K, h', w']
    logits, contrast = [each[: len(texts)] for each in everything], [tuple(each[len(texts) :]) for each in everything]
    clock.lap("model")
    # 5 the reference on the most confident prompts, when asked for
    planes = [list(answer) for answer in logits]
    refined: list[tuple[int, ...]] = [()] * len(pictures)
    if reference is not None:
        better = [
            _refine(engine, reference, canvas, texts, answer, quality) for canvas, answer in zip(canvases, logits)
        ]
        planes, refined = [final for final, _ in better], [chosen for _, chosen in better]
        clock.lap("refine")
    # 6 back to each picture's own pixels: masks [K, H, W], scores [K], label map [H, W]
    frames = [canvas.frame for canvas in canvases]
    labelled = [
        label(plane, partial(unfit_plane, frame), frame.original, options.rules, against)
        for plane, frame, against in zip(planes, frames, contrast)
    ]  # B x Labelled
    clock.lap("label")
    about = [_about(engine, frame, options.rules, notes, tuple(rivals)) for frame in frames]
    parts = zip(pictures, labelled, logits, planes, frames, about, refined, contrast)
    return [
        Segmentation(
            tuple(texts), picture, answer, raw, tuple(final), frame, about_picture, dict(clock.seconds), chosen, against
        )
        for picture, answer, raw, final, frame, about_picture, chosen, against in parts
    ]


def picture_logits(engine: Engine, pixels: Any, prompts: Sequence[str], size: int | None = None) -> tuple[Array, Frame]:
    """Steps 1 to 4 for one picture [H, W, 3]: logits [K, h', w'] as the model gives them, and how the picture lies in them.

    For evaluation and tools, which go on by themselves; nothing is enlarged.
    """
    texts = check_prompts(prompts)
    _check_size(engine, size)
    canvas = _fit(engine, Picture(pixels), size)
    logits, _ = _answer(engine, [canvas], *engine.prompts.fold(texts))
    return logits[0], canvas.frame


def contrasts(prompts: Sequence[str], against: Sequence[str]) -> list[str]:
    """The contrast prompts that are not asked about themselves, each once: a whole vocabulary may be given. Raises
    InputError for what is no prompt."""
    return list(dict.fromkeys(text for text in check_prompts(against) if text not in prompts)) if against else []


def _about(engine: Engine, frame: Frame, rules: Rules, notes: tuple[str, ...], against: tuple[str, ...]) -> About:
    """What made a result."""
    return About.of(engine.source, engine.backend.detail, max(frame.content), rules, engine.fallbacks + notes, against)


def _check_size(engine: Engine, size: int | None) -> None:
    if size is not None and not isinstance(size, (int, np.integer)):
        raise UsageError(f"working size must be a whole number of pixels, got {size!r}")
    if size is not None and not 2 * engine.stride <= size <= 4096:
        raise UsageError(f"working size must be {2 * engine.stride} to 4096 pixels, got {size}")


def _fit(engine: Engine, picture: Picture, size: int | None) -> Canvas:
    """The picture at the working size, within the profile where there is one: by default the largest that fits, up to
    the usual one; a size asked for is never changed."""
    profile = engine.runner.profile
    if profile is None:
        return fit(picture.pixels, size or engine.image_size, engine.stride)
    height, width = picture.pixels.shape[:2]
    most = profile.longest_side(height, width)
    if size is not None and size > most:
        raise InputError(
            f"{picture.path or 'a picture'} of {width}x{height} pixels worked at {size} is larger than the shapes this model "
            f"was exported for; at most {most} fits its proportions; ask for a smaller size, or export with others"
        )
    return fit(picture.pixels, size or min(profile.usual_side, most), engine.stride, least=profile.least)


def _answer(engine: Engine, canvases: list[Canvas], *text: Array) -> tuple[list[Array], tuple[str, ...]]:
    """Logits [K, h', w'] of every canvas; canvases of one shape share a run."""
    shapes: dict[tuple[int, ...], list[int]] = {}
    for i, canvas in enumerate(canvases):
        shapes.setdefault(canvas.pixels.shape, []).append(i)
    answers: dict[int, Array] = {}
    notes: tuple[str, ...] = ()
    for members in shapes.values():
        together = np.concatenate([canvases[i].pixels for i in members])
        logits, noted = engine.runner.segment(together, *text)
        answers.update(zip(members, logits))
        notes += noted
    return [answers[i] for i in range(len(canvases))], notes


def _refine(
    engine: Engine, reference: Any, canvas: Canvas, texts: list[str], logits: Array, quality: Quality
) -> tuple[list[Array], tuple[int, ...]]:
    """Planes with the most confident ones replaced by the reference's, and which those are."""
    mean = np.array([float(plane[plane > 0].mean()) if (plane > 0).any() else -np.inf for plane in logits])
    order = [int(k) for k in np.argsort(-mean, kind="stable") if np.isfinite(mean[k])]
    chosen = sorted(order[: quality.refine])
    planes = list(logits)
    if chosen:
        ids, mask = engine.prompts.tokenizer.encode([texts[k] for k in chosen])
        better = reference(canvas.pixels, ids, mask, logits[chosen], quality.steps, quality.seed)
        for k, plane in zip(chosen, better):
            planes[k] = plane
    return planes, tuple(chosen)
