"""What `Engine.segment` returns, and how to keep or show it."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from digseg_engine.errors import UsageError
from digseg_engine.images import Frame, Picture, unfit_plane
from digseg_engine.names import mask_names
from digseg_engine.runtime.folded import NO_LOGITS, unfit_labels
from digseg_engine.runtime.labels import Labelled, floor_of, probability
from digseg_engine.runtime.overlay import LONGEST, draw
from digseg_engine.runtime.record import About, Answer, known, listed_presence, percent, record, summary
from digseg_engine.runtime.rle import encode
from digseg_engine.runtime.saving import (
    PALETTE,
    check_targets,
    listed,
    make_folder,
    remove_stale,
    still_right,
    write_labels,
    write_mask,
    write_png,
    write_record,
)

__all__ = ["PALETTE", "SAVED", "About", "Segmentation", "mask_names"]
SAVED = ("overlay", "masks", "labels", "json")
NOTHING = np.zeros((0, 0, 0), np.float32)  # logits of a result that has none


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Masks of one picture, one per prompt, at the picture's own size.

    picture: pixels [H, W, 3] uint8 as decoded, and what its reading leaves to be said; answer: see `Labelled`;
    logits [K, h', w'] float32 as the model gave them (0 is the border), padding included, before upsampling;
    planes: the same K after refinement; frame: how the picture lies in them; timings: seconds per step (of a batch: this
    picture's share); refined: numbers of the prompts the reference went over; rivals: planes of the contrast prompts.
    presence: probability of every prompt to be in the picture at all, [K] float32 in 0..1, None for a model that does not say;
    there: which prompts it was enough for, [K] bool: the others were not decoded, their logits are -20 and their masks empty.
    """

    prompts: tuple[str, ...]
    picture: Picture
    answer: Labelled
    logits: NDArray[np.float32]
    planes: tuple[NDArray[np.float32], ...]
    frame: Frame
    about: About
    timings: dict[str, float] = field(default_factory=dict)
    refined: tuple[int, ...] = ()
    rivals: tuple[NDArray[np.float32], ...] = ()
    presence: NDArray[np.float32] | None = None
    there: NDArray[np.bool_] | None = None  # None: all of them

    @property
    def image(self) -> NDArray[np.uint8]:
        """The picture, [H, W, 3] uint8 RGB."""
        return self.picture.pixels

    @property
    def backend(self) -> str:
        """What ran."""
        return self.about.backend

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """What had to be done otherwise than planned, in words, what the picture's reading leaves to be said, and the hint
        for a squeezed one."""
        return self.about.notes + self.picture.notes + ((self.hint,) if self.hint else ())

    @property
    def hint(self) -> str:
        """What to try for a picture that is three times larger than it was worked at, or more; "" for another."""
        if not self.frame.squeezed:
            return ""
        longer, given = max(self.frame.content), max(self.frame.original)
        return f"worked at {longer} px, the picture has {given}; try a larger size (--imgsz) or tiles (--tile)"

    def __repr__(self) -> str:
        return summary("Segmentation", (self.label_map.shape[0], self.label_map.shape[1]), self.answers, self.about,
                       self.timings)  # fmt: skip

    @property
    def scores(self) -> NDArray[np.float32]:
        """Mean probability inside each mask, [K] in 0..1; 0 when it is empty."""
        return self.answer.scores

    @property
    def label_map(self) -> NDArray[np.int32]:
        """[H, W], 0 where no mask is set, else 1 + the number of the prompt that `Rules.labels` chooses there."""
        return self.answer.label_map

    @property
    def label_names(self) -> dict[int, str]:
        """The prompt that each value of the label map above 0 stands for."""
        return {k + 1: prompt for k, prompt in enumerate(self.prompts)}

    @property
    def masks(self) -> NDArray[np.bool_]:
        """[K, H, W] bool; made anew at every use when they were not kept (`mask` makes one)."""
        stored = self.answer.masks
        return np.stack([self.mask(k) for k in range(len(self.prompts))]) if stored is None else stored

    def mask(self, k: int) -> NDArray[np.bool_]:
        """The mask of prompt number k, [H, W] bool."""
        if self.answer.masks is not None:
            return np.asarray(self.answer.masks[k])
        return np.asarray(unfit_plane(self.frame, self.planes[k]) > self._floor())

    def _floor(self, shape: tuple[int, int] | None = None) -> NDArray[np.float32] | np.float32:
        """What a logit must pass, at every pixel where contrast prompts compete, at the picture's size or another."""
        return floor_of(self.rivals, partial(unfit_plane, self.frame, shape=shape), self.about.rules.border)

    def confidence(self, k: int) -> NDArray[np.float32]:
        """Probability of every pixel to belong to prompt number k, [H, W] float32 in 0..1."""
        return probability(unfit_plane(self.frame, self.planes[k]))

    @property
    def areas(self) -> NDArray[np.float64]:
        """Share of the picture each mask covers, [K] in 0..1."""
        return np.asarray(self.answer.pixels / self.label_map.size, np.float64)

    @property
    def found(self) -> NDArray[np.bool_]:
        """Which prompts count as found, [K]: those whose mask is no smaller than one logit of the model."""
        working, content = self.frame.working, self.frame.content
        cells = [plane.size * content[0] * content[1] / (working[0] * working[1]) for plane in self.planes]
        least = np.array([self.label_map.size / max(count, 1) for count in cells])
        return np.asarray((self.answer.pixels > 0) & (self.answer.pixels >= np.floor(least)), np.bool_)

    @property
    def answers(self) -> tuple[Answer, ...]:
        """The figures of every prompt together."""
        presence, there = listed_presence(self.presence, self.there, len(self.prompts))
        return tuple(
            Answer(prompt, float(area), int(pixels), float(score), box, bool(found), sure, in_it)
            for prompt, area, pixels, score, box, found, sure, in_it in zip(
                self.prompts,
                self.areas,
                self.answer.pixels,
                self.scores,
                self.answer.boxes,
                self.found,
                presence,
                there,
            )
        )

    def _masks_at(self, order: list[int], shape: tuple[int, int]) -> Iterator[NDArray[np.bool_]]:
        """The masks of these prompts at the size of the overlay."""
        floor = self._floor(shape)
        whole = self.answer.masks is not None and shape == self.label_map.shape
        for k in order:
            yield self.mask(k) if whole else np.asarray(unfit_plane(self.frame, self.planes[k], shape) > floor)

    def overlay(self, longest: int | None = None) -> Image.Image:
        """The picture in grey with every mask tinted and outlined in the colours of the legend below. longest: reduce the
        picture to this many pixels of its longer side first."""
        height, width = self.label_map.shape
        scale = min(1.0, (longest or max(height, width)) / max(height, width))
        shape = (max(1, round(height * scale)), max(1, round(width * scale)))
        order = [int(k) for k in np.argsort(-self.answer.pixels, kind="stable")]
        small = self.image
        if shape != (height, width):
            small = np.asarray(
                Image.fromarray(small).resize((shape[1], shape[0]), Image.Resampling.BOX, reducing_gap=2.0)
            )
        return draw(
            small, zip(order, self._masks_at(order, shape)), [self._legend_line(k) for k in range(len(self.prompts))]
        )

    def _legend_line(self, k: int) -> tuple[str, str]:
        if not self.found[k]:
            return self.prompts[k], "not found" if self.there is None or self.there[k] else "not there"
        score = "" if np.isnan(self.scores[k]) else f"   score {self.scores[k]:.2f}"
        return self.prompts[k], f"{percent(float(self.areas[k]))}{score}"

    def as_dict(self) -> dict[str, Any]:
        """Areas, boxes, scores and what made them as plain JSON values; the schema is in docs/runtime.md."""
        shape = (self.label_map.shape[0], self.label_map.shape[1])
        body = record(shape, self.answers, self.about, self.timings, self.picture.path, self.refined)
        return {**body, "notes": list(self.fallbacks)}

    def as_coco(self, image_id: int | str = 0, first_id: int = 1) -> list[dict[str, Any]]:
        """COCO annotations of the masks that are not empty: run lengths, box [x, y, width, height], area in pixels,
        score; `category_id` is 1 + the prompt's number, and the prompt stands beside it."""
        notes: list[dict[str, Any]] = []
        for k, box in enumerate(self.answer.boxes):
            if box is None:
                continue
            left, top, right, bottom = box
            notes.append({
                "id": first_id + len(notes), "image_id": image_id, "category_id": k + 1, "prompt": self.prompts[k],
                "segmentation": encode(self.mask(k)), "bbox": [left, top, right - left, bottom - top],
                "area": int(self.answer.pixels[k]), "score": known(float(self.scores[k])), "iscrowd": 0,
            })  # fmt: skip
        return notes

    def places(self, folder: Path, stem: str, what: Collection[str]) -> tuple[dict[str, Path], list[Path]]:
        """Where `save` puts overlay and labels, by kind, and the mask of every prompt, as far as they are asked for."""
        files = {kind: folder / f"{stem}.{kind}.png" for kind in ("overlay", "labels") if kind in what}
        return files, [folder / f"{stem}.mask.{name}.png" for name in mask_names(self.prompts) if "masks" in what]

    def save(self, folder: Path | str, stem: str, what: Collection[str] = SAVED) -> list[Path]:
        """Write what is asked for of overlay, masks (one PNG per prompt), labels (label map) and json under `folder`; returns
        the paths in that order. `timings["save"]` is then the seconds it took.

        The overlay is reduced to 2,048 pixels; everything else has the picture's own size. Results of an earlier run for the
        same stem are replaced, stale ones removed; those of the same question to the same model stay. Raises UsageError for
        an unknown kind, OutputError for what cannot be written and for a file of that name that is not ours.
        """
        if unknown := set(what) - set(SAVED):
            raise UsageError(f"cannot save {', '.join(sorted(unknown))}; expected some of {', '.join(SAVED)}")
        began = time.perf_counter()
        folder = Path(folder)
        record_path = folder / f"{stem}.json"
        files, masks = self.places(folder, stem, what)
        make_folder(folder)
        check_targets([*files.values(), *masks, *([record_path] if "json" in what else [])], record_path)
        earlier = listed(record_path)
        if "overlay" in files:
            write_png(files["overlay"], self.overlay(LONGEST))
        for k, path in enumerate(masks):
            write_mask(path, self.mask(k))
        if "labels" in files:
            write_labels(files["labels"], self.label_map, len(self.prompts))
        written = [*([files["overlay"]] if "overlay" in files else []), *masks]
        written += [files["labels"]] if "labels" in files else []
        self.timings["save"] = time.perf_counter() - began
        if "json" in what:
            body = self.as_dict()
            kept, kept_masks = still_right(record_path, body)
            files, every_mask = {**kept, **files}, masks or kept_masks
            write_record(record_path, body, files, every_mask)
            standing = {path.name for path in (*files.values(), *every_mask) if path is not None}
            remove_stale(folder, stem, earlier - standing)
            written.append(record_path)
        return written


class MapSegmentation(Segmentation):
    """The result of a bundle that answers its label map alone: a mask is where the map shows a name, so masks do not overlap, and
    scores are NaN where there is a mask. There are no logits: whatever needs them raises UsageError."""

    @property
    def logits(self) -> NDArray[np.float32]:  # type: ignore[override]
        raise UsageError(NO_LOGITS.format("logits"))

    @logits.setter
    def logits(self, none: NDArray[np.float32]) -> None:
        """Set once, by the constructor, to nothing."""

    def mask(self, k: int) -> NDArray[np.bool_]:
        """The mask of name number k, [H, W] bool."""
        return np.asarray(self.label_map == range(1, len(self.prompts) + 1)[k])

    def confidence(self, k: int) -> NDArray[np.float32]:
        raise UsageError(NO_LOGITS.format("confidence"))

    @property
    def found(self) -> NDArray[np.bool_]:
        """Which names count as found, [K]: those whose mask is no smaller than one pixel of the model."""
        content = self.frame.content
        return np.asarray(self.answer.pixels >= max(1, self.label_map.size // (content[0] * content[1])), np.bool_)

    def _masks_at(self, order: list[int], shape: tuple[int, int]) -> Iterator[NDArray[np.bool_]]:
        whole = Frame(self.label_map.shape, self.label_map.shape, self.label_map.shape)  # type: ignore[arg-type]
        small = unfit_labels(self.label_map, whole, shape)
        for k in order:
            yield np.asarray(small == k + 1)
