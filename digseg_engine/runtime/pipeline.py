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
from digseg_engine.runtime.chunks import Stretch, Text, joined
from digseg_engine.runtime.encoding import Encoding
from digseg_engine.runtime.folded import NO_LOGITS, Chosen, answer_map, unfit_labels
from digseg_engine.runtime.labels import USUAL, Rules, label, label_of_map, probability
from digseg_engine.runtime.presence import ask
from digseg_engine.runtime.prompts import Prepared
from digseg_engine.runtime.result import NOTHING, About, MapSegmentation, Segmentation
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
    all_prompts: bool = False  # also masks of those that presence says are not there


class Clock:
    """Seconds per step, shared equally by the pictures of a batch."""

    def __init__(self, pictures: int) -> None:
        self.seconds: dict[str, float] = {}
        self._share, self._last = max(1, pictures), time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + (now - self._last) / self._share
        self._last = now


def segment_pictures(
    engine: Engine,
    pictures: Sequence[Picture | Encoding],
    prompts: Sequence[str] | None,
    options: Options,
    clock: Clock,
) -> list[Segmentation]:
    """The pipeline. The same prompts about B pictures, each [H, W, 3] of its own size, or encoded before."""
    quality = options.quality
    # 1 check the request
    texts = engine.texts(prompts)
    engine.prompts.check_owner(prompts or ())
    rivals = contrasts(texts, options.against)
    if quality.refine < 0:
        raise UsageError(f"the number of prompts to refine must be 0 or more, got {quality.refine}")
    reference = engine.reference() if quality.refine else None
    if reference is not None and not quality.force:
        reference.allow(quality.steps)
    check_pictures(engine, pictures, options.size)
    # 2 prompts, encoded once each
    text = engine.prompts.fold(prompts if isinstance(prompts, Prepared) and not rivals else texts + rivals)
    # [K, S, H, d, L], [K, S, H, L, Co], [K, L], contrast prompts behind the others
    clock.lap("text")
    # 3 pictures, encoded once each
    encodings = encode_pictures(engine, pictures, options.size, clock)  # B x [1, M, Hc / s, Wc / s]
    if engine.source.vocabulary is not None and engine.source.vocabulary.labels_only:
        return _mapped(engine, encodings, texts, text, options, clock)
    # 4 presence of all prompts, masks of those that are there
    found = _answer(engine, encodings, text, options.all_prompts, clock)  # B x presence [K], logits [K, h', w']
    answers = [each.cut(len(texts)) for each in found]
    # 5 the reference on the most confident prompts, when asked for
    planes = [list(answer.logits) for answer in answers]
    refined: list[tuple[int, ...]] = [()] * len(answers)
    if reference is not None:
        better = [
            _refine(engine, reference, encoding, texts, answer.logits, quality)
            for encoding, answer in zip(encodings, answers)
        ]
        planes, refined = [final for final, _ in better], [chosen for _, chosen in better]
        clock.lap("refine")
    # 6 back to each picture's own pixels: masks [K, H, W], scores [K], label map [H, W]
    frames = [encoding.frame for encoding in encodings]
    labelled = [
        label(plane, partial(unfit_plane, frame), frame.original, options.rules, answer.rivals)
        for plane, frame, answer in zip(planes, frames, answers)
    ]  # B x Labelled
    clock.lap("label")
    about = [
        _about(engine, encoding, options, answer.notes, tuple(rivals)) for encoding, answer in zip(encodings, answers)
    ]
    parts = zip(encodings, labelled, answers, planes, about, refined)
    return [
        Segmentation(
            tuple(texts), encoding.picture, masks, answer.logits, tuple(final), encoding.frame, about_picture,
            dict(clock.seconds), chosen, answer.rivals, answer.presence, answer.there,
        )
        for encoding, masks, answer, final, about_picture, chosen in parts
    ]  # fmt: skip


def _mapped(
    engine: Engine, encodings: list[Encoding], texts: list[str], chosen: Chosen, options: Options, clock: Clock
) -> list[Segmentation]:
    """Steps 4 to 6 of a bundle that answers its label map alone: masks are where the map shows a name."""
    if options.rules.border != 0:
        raise UsageError(NO_LOGITS.format("a threshold other than 0.5"))
    results: list[Segmentation] = []
    for encoding in encodings:
        (maps, presence), notes = answer_map(
            engine.runner, encoding.place, chosen
        )  # [1, H, W] at the working size, [1, K]
        clock.lap("masks")
        answer = label_of_map(unfit_labels(maps[0], encoding.frame), len(texts))
        clock.lap("label")
        sure = None if presence is None else probability(presence[0])
        there = engine.gate.there(presence, len(texts), 1)[0]
        results.append(MapSegmentation(
            tuple(texts), encoding.picture, answer, NOTHING, (), encoding.frame, _about(engine, encoding, options, notes, ()),
            {}, presence=sure, there=there,
        ))  # fmt: skip
    for result in results:
        result.timings.update(clock.seconds)
    return results


def encode_pictures(
    engine: Engine, pictures: Sequence[Picture | Encoding], size: int | None, clock: Clock
) -> list[Encoding]:
    """Encodings of pictures, those of one working shape made together; what is encoded already stays as it is."""
    new = {i: picture for i, picture in enumerate(pictures) if isinstance(picture, Picture)}
    if not new:
        return [picture for picture in pictures if isinstance(picture, Encoding)]
    canvases = {i: _fit(engine, picture, size) for i, picture in new.items()}
    clock.lap("fit")
    shapes: dict[tuple[int, ...], list[int]] = {}
    for i, canvas in canvases.items():
        shapes.setdefault(canvas.pixels.shape, []).append(i)
    places: dict[int, tuple[Stretch, tuple[str, ...]]] = {}
    for members in shapes.values():
        found, notes = engine.runner.encode(np.concatenate([canvases[i].pixels for i in members]))
        places.update((i, (place, notes)) for i, place in zip(members, found))
    clock.lap("encode")
    return [
        Encoding(picture, canvases[i].frame, places[i][0], engine.mark, places[i][1])
        if isinstance(picture, Picture) else picture
        for i, picture in enumerate(pictures)
    ]  # fmt: skip


def picture_logits(
    engine: Engine, pixels: Any, prompts: Sequence[str], size: int | None = None, all_prompts: bool = False
) -> tuple[OfPicture, Frame]:  # fmt: skip
    """Steps 1 to 4 for one picture [H, W, 3]: logits [K, h', w'] as the model gives them with what presence says, and how the
    picture lies in them.

    For evaluation and tools, which go on by themselves; nothing is enlarged.
    """
    texts, picture, clock = engine.texts(prompts), Picture(pixels), Clock(1)
    check_pictures(engine, [picture], size)
    text = engine.prompts.fold(texts)
    (encoding,) = encode_pictures(engine, [picture], size, clock)
    (found,) = _answer(engine, [encoding], text, all_prompts, clock)
    return found, encoding.frame


def picture_map(
    engine: Engine, pixels: Any, prompts: Sequence[str], size: int | None = None
) -> tuple[Array, Array | None, Array, Frame]:  # fmt: skip
    """As `picture_logits` of a folded bundle: its label map [H, W] at the working size (1 + the number of a prompt), presence as
    probabilities [K] or None, which prompts are there [K], and how the picture lies in the map."""
    texts, picture, clock = engine.texts(prompts), Picture(pixels), Clock(1)
    check_pictures(engine, [picture], size)
    (encoding,) = encode_pictures(engine, [picture], size, clock)
    (maps, presence), _ = answer_map(engine.runner, encoding.place, engine.prompts.fold(texts))
    there = engine.gate.there(presence, len(texts), 1)[0]
    return maps[0], None if presence is None else probability(presence[0]), there, encoding.frame


def contrasts(prompts: Sequence[str], against: Sequence[str]) -> list[str]:
    """The contrast prompts that are not asked about themselves, each once: a whole vocabulary may be given. Raises
    InputError for what is no prompt."""
    return list(dict.fromkeys(text for text in check_prompts(against) if text not in prompts)) if against else []


def _about(
    engine: Engine, encoding: Encoding, options: Options, notes: tuple[str, ...], against: tuple[str, ...]
) -> About:  # fmt: skip
    """What made a result."""
    said = engine.fallbacks + encoding.notes + notes
    return About.of(
        engine.source, engine.backend.detail, encoding.size, options.rules, said, against, options.all_prompts
    )


def check_pictures(engine: Engine, pictures: Sequence[Picture | Encoding], size: int | None) -> None:
    """Raises UsageError for a working size out of range, and for encodings of another engine or size."""
    if size is not None and not isinstance(size, (int, np.integer)):
        raise UsageError(f"working size must be a whole number of pixels, got {size!r}")
    if size is not None and not 2 * engine.stride <= size <= 4096:
        raise UsageError(f"working size must be {2 * engine.stride} to 4096 pixels, got {size}")
    for picture in pictures:
        if isinstance(picture, Encoding):
            picture.check(engine.mark, size)


def _fit(engine: Engine, picture: Picture, size: int | None) -> Canvas:
    """The picture at the working size, within the profile where there is one: by default the largest that fits, up to
    the usual one; a size asked for is never changed."""
    profile = engine.runner.profile
    if profile is None:
        return fit(picture.pixels, size or engine.working_size.of(*picture.pixels.shape[:2]), engine.stride)
    height, width = picture.pixels.shape[:2]
    most = profile.longest_side(height, width)
    if size is not None and size > most:
        raise InputError(
            f"{picture.path or 'a picture'} of {width}x{height} pixels worked at {size} is larger than the shapes this model "
            f"was exported for; at most {most} fits its proportions; ask for a smaller size, or export with others"
        )
    return fit(picture.pixels, size or min(profile.usual_side, most), engine.stride, least=profile.least)


@dataclass(frozen=True, eq=False)
class OfPicture:
    """What the model says about one picture: logits [K, h', w'], presence as probabilities [K] (None without a readout),
    which prompts are there [K], planes of contrast prompts, and notes."""

    logits: Array
    presence: Array | None
    there: Array
    notes: tuple[str, ...] = ()
    rivals: tuple[Array, ...] = ()

    def cut(self, count: int) -> OfPicture:
        """The first `count` prompts; the others are contrast prompts."""
        presence = None if self.presence is None else self.presence[:count]
        rivals = tuple(self.logits[count:])
        return OfPicture(self.logits[:count], presence, self.there[:count], self.notes, rivals)


def _answer(
    engine: Engine, encodings: list[Encoding], text: Text | Chosen, all_prompts: bool, clock: Clock
) -> list[OfPicture]:
    """What the model says about every picture; neighbours that were encoded together are asked together."""
    order = sorted(range(len(encodings)), key=lambda i: (id(encodings[i].place.kept), encodings[i].place.first))
    answers: dict[int, OfPicture] = {}
    waiting = iter(order)
    for stretch in joined(encodings[i].place for i in order):
        found, notes = ask(engine.runner, stretch, text, engine.gate.opened(all_prompts), clock.lap)
        for n in range(len(stretch)):
            presence = None if found.presence is None else probability(found.presence[n])
            answers[next(waiting)] = OfPicture(found.logits[n], presence, found.there[n], notes)
    return [answers[i] for i in range(len(encodings))]


def _refine(
    engine: Engine, reference: Any, encoding: Encoding, texts: list[str], logits: Array, quality: Quality
) -> tuple[list[Array], tuple[int, ...]]:
    """Planes with the most confident ones replaced by the reference's, and which those are."""
    mean = np.array([float(plane[plane > 0].mean()) if (plane > 0).any() else -np.inf for plane in logits])
    order = [int(k) for k in np.argsort(-mean, kind="stable") if np.isfinite(mean[k])]
    chosen = sorted(order[: quality.refine])
    planes = list(logits)
    if chosen:
        ids, mask = engine.prompts.tokenizer.encode([texts[k] for k in chosen])
        canvas = _fit(engine, encoding.picture, encoding.size)
        better = reference(canvas.pixels, ids, mask, logits[chosen], quality.steps, quality.seed)
        for k, plane in zip(chosen, better):
            planes[k] = plane
    return planes, tuple(chosen)
