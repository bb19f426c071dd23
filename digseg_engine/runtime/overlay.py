"""Overlays: a picture in grey under tints and outlines whose colours are those of the legend below it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from digseg_engine.runtime.fonts import font_for, readable
from digseg_engine.runtime.saving import PALETTE

LONGEST = 2048  # pixels of the longer side of a saved overlay
NARROWEST = 320  # smaller pictures are enlarged, so that the legend can be read
TINT = 0.6  # share of the colour in a mask; the rest is the picture's lightness, so that the hue stays the legend's
MOST_LETTERS = 60


def draw(
    rgb: NDArray[np.uint8], masks: Iterable[tuple[int, NDArray[np.bool_]]], legend: Sequence[tuple[str, str]]
) -> Image.Image:
    """rgb [H, W, 3]; masks: (number, [H, W]) from the largest to the smallest, so that none is hidden; legend: prompt and
    what is said about it, by number."""
    canvas = np.array(rgb)
    grey = np.asarray(Image.fromarray(rgb).convert("L"))
    width = max(1, round(max(rgb.shape[:2]) / 1000))
    edges: list[tuple[NDArray[np.intp], tuple[int, int, int]]] = []
    for k, mask in masks:
        colour = PALETTE[k % len(PALETTE)]
        inside = np.flatnonzero(mask)
        if not len(inside):
            continue
        shades = np.array([tint(colour, level) for level in range(256)], np.uint8)  # [256, 3]
        canvas.reshape(-1, 3)[inside] = shades[grey.reshape(-1)[inside]]
        edges.append((np.flatnonzero(outline(mask, width)), colour))
    for edge, colour in edges:
        canvas.reshape(-1, 3)[edge] = colour
    return with_legend(enlarged(Image.fromarray(canvas)), legend)


def tint(colour: tuple[int, int, int], level: int) -> tuple[int, ...]:
    """A colour over a grey level."""
    return tuple(round(TINT * part + (1 - TINT) * level) for part in colour)


def outline(mask: NDArray[np.bool_], width: int = 1) -> NDArray[np.bool_]:
    """The pixels of a mask [H, W] that are at most `width` away from its border, along rows and columns."""
    inner = mask.copy()
    for step in range(1, min(width, *mask.shape) + 1) if min(mask.shape) > 1 else ():
        inner[step:] &= mask[:-step]
        inner[:-step] &= mask[step:]
        inner[:, step:] &= mask[:, :-step]
        inner[:, :-step] &= mask[:, step:]
    edge: NDArray[np.bool_] = mask & ~inner
    return edge


def enlarged(picture: Image.Image) -> Image.Image:
    times = max(1, round(NARROWEST / max(1, picture.width)))
    return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)


def with_legend(picture: Image.Image, legend: Sequence[tuple[str, str]]) -> Image.Image:
    """The picture with a line per prompt below it, in type that grows with the picture's width."""
    size = max(15, round(picture.width / 50))
    row, pad, box = round(1.6 * size), size // 2, size
    lines = [(" ".join(prompt.split()), said) for prompt, said in legend]
    lines = [(p if len(p) <= MOST_LETTERS else f"{p[: MOST_LETTERS - 3]}...", said) for p, said in lines]
    texts = []
    for prompt, said in lines:
        font = font_for(prompt, size)
        texts.append((f"{readable(prompt, font)}   {said}", font))
    width = max([picture.width, *(int(font.getlength(text)) + box + 4 * pad for text, font in texts)])
    sheet = Image.new("RGB", (width, picture.height + row * len(texts) + 2 * pad), "white")
    sheet.paste(picture, (0, 0))
    pen = ImageDraw.Draw(sheet)
    for k, (text, font) in enumerate(texts):
        middle = picture.height + pad + k * row + row // 2
        corner = (pad, middle - box // 2)
        fill = tint(PALETTE[k % len(PALETTE)], 160)
        pen.rectangle((*corner, pad + box, middle + box // 2), fill=fill, outline=PALETTE[k % len(PALETTE)],
                      width=max(1, box // 6))  # fmt: skip
        pen.text((2 * pad + box, middle), text, "black", font, anchor="lm")
    return sheet
