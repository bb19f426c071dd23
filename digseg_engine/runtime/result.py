"""What `Engine.segment` returns, and how to keep or show it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from digseg_engine.runtime.rle import encode

PALETTE = (
    (230, 57, 70), (29, 120, 216), (42, 157, 82), (244, 162, 28), (142, 68, 173), (0, 172, 193),
    (255, 112, 166), (124, 179, 66), (121, 85, 72), (63, 81, 181), (255, 214, 10), (84, 110, 122),
)  # fmt: skip


@dataclass(frozen=True)
class Segmentation:
    """Masks of one picture, one per prompt, at the picture's own size.

    masks [K, H, W] bool; scores [K] float in 0..1, mean probability inside each mask (0 when it is empty);
    label_map [H, W] int32, 0 where no mask is set, else 1 + the number of the strongest prompt;
    logits [K, h', w'] float32 as the model gave them (0 is the border), padding included, before upsampling;
    timings: seconds per stage (of a batch: this picture's share); backend: what ran; fallbacks: what had to be done
    otherwise than planned, in words; refined: numbers of the prompts the reference went over.
    """

    prompts: tuple[str, ...]
    masks: NDArray[np.bool_]
    scores: NDArray[np.float32]
    label_map: NDArray[np.int32]
    logits: NDArray[np.float32]
    image: NDArray[np.uint8]  # [H, W, 3]
    backend: str
    timings: Mapping[str, float] = field(default_factory=dict)
    fallbacks: tuple[str, ...] = ()
    refined: tuple[int, ...] = ()

    @property
    def areas(self) -> NDArray[np.float64]:
        """Share of the picture each mask covers, [K] in 0..1."""
        return np.asarray(self.masks.mean(axis=(1, 2)), np.float64)

    def overlay(self) -> Image.Image:
        """The picture with every mask tinted and outlined, and a legend below."""
        canvas = self.image.astype(np.float32)
        for k in np.argsort(-self.areas, kind="stable"):  # small masks last, so that a large one hides none
            mask = self.masks[k]
            colour = np.array(PALETTE[k % len(PALETTE)], np.float32)
            canvas[mask] = 0.5 * canvas[mask] + 0.5 * colour
            canvas[_outline(mask)] = colour
        picture = Image.fromarray(canvas.astype(np.uint8))
        grown = max(1, round(320 / max(1, picture.width)))  # small pictures are enlarged so the legend can be read
        picture = picture.resize((picture.width * grown, picture.height * grown), Image.Resampling.NEAREST)
        return self._with_legend(picture)

    def _with_legend(self, picture: Image.Image) -> Image.Image:
        row, pad, font = 24, 8, ImageFont.load_default(15)
        lines = [self._legend_line(k) for k in range(len(self.prompts))]
        width = max([picture.width, *(int(font.getlength(line)) + 24 + 2 * pad for line in lines)])
        sheet = Image.new("RGB", (width, picture.height + row * len(lines) + 2 * pad), "white")
        sheet.paste(picture, (0, 0))
        draw = ImageDraw.Draw(sheet)
        for k, line in enumerate(lines):
            top = picture.height + pad + k * row
            draw.rectangle((pad, top + 4, pad + 16, top + 20), fill=PALETTE[k % len(PALETTE)], outline="black")
            draw.text((pad + 24, top + 3), line, "black", font)
        return sheet

    def _legend_line(self, k: int) -> str:
        prompt = self.prompts[k] if len(self.prompts[k]) <= 60 else self.prompts[k][:57] + "..."
        if not self.masks[k].any():
            return f"{prompt}   not found"
        return f"{prompt}   {100 * self.masks[k].mean():.1f} %   score {self.scores[k]:.2f}"

    def as_dict(self) -> dict[str, Any]:
        """Areas, boxes and scores as plain JSON values."""
        height, width = self.label_map.shape
        found = [
            {"prompt": prompt, "area": round(float(area), 6), "score": round(float(score), 4), "box": _box(mask)}
            for prompt, area, score, mask in zip(self.prompts, self.areas, self.scores, self.masks)
        ]
        seconds = {name: round(value, 5) for name, value in self.timings.items()}
        about = {"width": width, "height": height, "backend": self.backend, "seconds": seconds}
        if self.fallbacks:
            about["fallbacks"] = list(self.fallbacks)
        if self.refined:
            about["refined"] = [self.prompts[k] for k in self.refined]
        return {**about, "masks": found}

    def as_coco(self, image_id: int | str = 0, first_id: int = 1) -> list[dict[str, Any]]:
        """COCO annotations of the masks that are not empty: run lengths, box [x, y, width, height], area in pixels,
        score; `category_id` is 1 + the prompt's number, and the prompt stands beside it."""
        found: list[dict[str, Any]] = []
        for k, mask in enumerate(self.masks):
            box = _box(mask)
            if box is None:
                continue
            left, top, right, bottom = box
            found.append({
                "id": first_id + len(found), "image_id": image_id, "category_id": k + 1, "prompt": self.prompts[k],
                "segmentation": encode(mask), "bbox": [left, top, right - left, bottom - top], "area": int(mask.sum()),
                "score": round(float(self.scores[k]), 4), "iscrowd": 0,
            })  # fmt: skip
        return found

    def save(self, folder: Path | str, stem: str) -> list[Path]:
        """Write overlay, one mask PNG per prompt, label map and JSON under `folder`; returns the paths."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        written = [folder / f"{stem}.overlay.png"]
        self.overlay().save(written[0])
        for name, mask in zip(mask_names(self.prompts), self.masks):
            written.append(folder / f"{stem}.mask.{name}.png")
            Image.fromarray(mask.astype(np.uint8) * 255).save(written[-1])
        written.append(folder / f"{stem}.labels.png")
        deep = len(self.prompts) > 255
        Image.fromarray(self.label_map.astype(np.uint16 if deep else np.uint8)).save(written[-1])
        written.append(folder / f"{stem}.json")
        written[-1].write_text(json.dumps(self.as_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return written


def mask_names(prompts: tuple[str, ...]) -> list[str]:
    """File-name parts for prompts, unique: "red circle" -> "red-circle"; clashes get a number."""
    names: list[str] = []
    for prompt in prompts:
        slug = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")[:48] or "prompt"
        taken = sum(name == slug or re.fullmatch(re.escape(slug) + r"-\d+", name) is not None for name in names)
        names.append(f"{slug}-{taken + 1}" if taken else slug)
    return names


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    inner = mask.copy()
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    edge: NDArray[np.bool_] = mask & ~inner
    return edge


def _box(mask: NDArray[np.bool_]) -> list[int] | None:
    """[left, top, right, bottom] in pixels, right and bottom exclusive; None for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
