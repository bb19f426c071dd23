"""How a picture is shown to a model: reduced, in windows, at several scales, mirrored. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from digseg_engine.errors import UsageError

Box = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True)
class Views:
    """How a picture is shown to the model; the answers of several views are averaged as logits.

    scales: working sizes as multiples of the usual one. flip: each is also shown mirrored. slide: windows of the working
    size over the picture at its own resolution, neighbours sharing `overlap`, instead of the whole picture reduced to it.
    short_side: pixels of the shorter side that the picture is brought to, before windows are laid or instead of the
    working size.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    slide: bool = False
    overlap: float = 1 / 3
    short_side: int | None = None

    def __post_init__(self) -> None:
        if not self.scales or not all(0.1 <= scale <= 10 for scale in self.scales):
            raise UsageError(f"scales must be numbers from 0.1 to 10, such as 0.75,1,1.25; got {self.scales}")
        if not 0 <= self.overlap < 1:
            raise UsageError(f"the overlap of windows must be at least 0 and less than 1, got {self.overlap}")
        if self.short_side is not None and self.short_side < 16:
            raise UsageError(f"the shorter side must be at least 16 pixels, got {self.short_side}")

    def reduction(self, shape: tuple[int, int], size: int, stride: int) -> float:
        """How many times larger a picture (height, width) is than it is worked at, in the view that reduces it least."""
        return min(max(right - left, bottom - top) / pixels
                   for (left, top, right, bottom), pixels in self.boxes(shape, size, stride))  # fmt: skip

    def boxes(self, shape: tuple[int, int], size: int, stride: int) -> list[tuple[Box, int]]:
        """(box in the picture, pixels of the longer side it is worked at) of every view of a picture (height, width)."""
        height, width = shape
        enlarged = 1.0 if self.short_side is None else self.short_side / min(shape)
        found = []
        for scale in self.scales:
            ratio = enlarged * scale
            if self.slide:
                around = windows(shape, max(1, round(size / ratio)), self.overlap)
                found += [(box, _stepped(max(box[2] - box[0], box[3] - box[1]) * ratio, stride)) for box in around]
            else:
                longer = size * scale if self.short_side is None else max(shape) * ratio
                found.append(((0, 0, width, height), _stepped(longer, stride)))
        return found


WHOLE = Views()


def _stepped(pixels: float, stride: int) -> int:
    """The nearest multiple of the stride, at least two of them."""
    return max(2, round(pixels / stride)) * stride


def windows(shape: tuple[int, int], side: int, overlap: float) -> Sequence[Box]:
    """Boxes of `side` pixels that cover a picture, neighbours overlapping by at least that share; the last ones end at the
    picture's edge, a smaller picture is one window."""
    step = max(1, round(side * (1 - overlap)))

    def starts(length: int) -> list[int]:
        return [min(i * step, max(0, length - side)) for i in range(max(1, math.ceil((length - side) / step) + 1))]

    height, width = shape
    return [
        (x, y, min(width, x + side), min(height, y + side)) for y in starts(height) for x in starts(width)
    ]  # fmt: skip
