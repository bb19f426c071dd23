"""Writes a large result piece by piece: label map and masks as `.npy`, an overview picture, areas, boxes and scores.

Nothing has its final name before all of it is there: arrays grow in temporary siblings and are renamed at the end.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import DTypeLike, NDArray
from PIL import Image

from digseg_engine.files import replacing
from digseg_engine.images import Float, Rgb
from digseg_engine.runtime.labels import box, floor_of, probability
from digseg_engine.runtime.overlay import tint
from digseg_engine.runtime.saving import PALETTE, array_head, check_targets, write_png

TILED = ("overlay", "labels")  # what is written of a picture in tiles unless told otherwise, and the JSON always
NAMES = {"labels": "labels", "overlay": "overview", "masks": "masks"}  # kind of file -> its name beside the picture's
OVERVIEW = 2048  # longest side of the overview, pixels


class NpyFile:
    """An array on disk, in C order, filled by pieces of rows without being mapped (mapped pages count as memory)."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self.path, self.shape, self.dtype = path, shape, np.dtype(dtype)
        self._file: BinaryIO = path.open("wb")
        head = array_head({"descr": npy.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape})
        self._file.write(head)
        self._start = len(head)
        self._file.truncate(self._start + int(np.prod(shape)) * self.dtype.itemsize)

    def write(self, top: int, left: int, piece: np.ndarray, plane: int = 0) -> None:  # type: ignore[type-arg]
        """piece [h, w] at a row and column of the last two axes, of plane number `plane`."""
        height, width = self.shape[-2:]
        for i, row in enumerate(np.ascontiguousarray(piece, self.dtype)):
            at = (plane * height + top + i) * width + left
            self._file.seek(self._start + at * self.dtype.itemsize)
            self._file.write(row.tobytes())

    def close(self) -> None:
        self._file.close()


class StripWriter:
    """Takes full-size logits of pieces in any order, as a context: on its good end the wanted `kinds` of labels, overlay
    (here an overview) and masks get their names, on a bad one nothing is left. `pixels`, `boxes` and `scores` are complete
    after the last piece.

    Where masks meet, the strongest prompt labels a pixel. border: the logit from which a pixel belongs to a mask.
    """

    def __init__(
        self, folder: Path, stem: str, shape: tuple[int, int], prompts: tuple[str, ...], border: float = 0.0,
        kinds: Collection[str] = TILED,
    ) -> None:  # fmt: skip
        self.shape, self.border, self.count = shape, np.float32(border), len(prompts)
        endings = {"labels": "npy", "overview": "png", "masks": "npy"}
        wanted = [NAMES[kind] for kind in NAMES if kind in kinds]
        self.files = {name: folder / f"{stem}.{name}.{endings[name]}" for name in wanted}
        self.record = folder / f"{stem}.json"
        self._step = -(-max(shape) // OVERVIEW)
        self._overview = np.zeros((-(-shape[0] // self._step), -(-shape[1] // self._step), 3), np.uint8)
        self.pixels = np.zeros(self.count, np.int64)
        self.boxes: list[list[int] | None] = [None] * self.count
        self._certainty = np.zeros(self.count, np.float64)
        self._stack = ExitStack()

    def __enter__(self) -> StripWriter:
        check_targets([*self.files.values(), self.record], self.record)
        with ExitStack() as stack:
            self._labels = self._open(stack, "labels", self.shape, self._values)
            self._masks = self._open(stack, "masks", (self.count, *self.shape), np.bool_)
            self._stack = stack.pop_all()
        return self

    @property
    def _values(self) -> type[np.uint8 | np.uint16]:
        return np.uint8 if self.count < 256 else np.uint16

    def _open(self, stack: ExitStack, kind: str, shape: tuple[int, ...], dtype: DTypeLike) -> NpyFile | None:
        """The file of a kind that is wanted."""
        if kind not in self.files:
            return None
        file = NpyFile(stack.enter_context(replacing(self.files[kind])), shape, dtype)
        stack.callback(file.close)  # before it is renamed
        return file

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, at)
        if kind is None and "overview" in self.files:
            write_png(self.files["overview"], Image.fromarray(self._overview))

    def write(self, top: int, left: int, logits: Float, rgb: Rgb) -> None:
        """Full-size logits [K, h, w] and the picture [h, w, 3] of one piece; what follows the prompts' planes are those of
        contrast prompts."""
        floor = floor_of(logits[self.count :], lambda plane: plane, self.border)
        best = np.full(logits.shape[1:], floor)
        labels = np.zeros(logits.shape[1:], self._values)
        for k, plane in enumerate(logits[: self.count]):
            mask, wins = plane > floor, plane > best
            best[wins], labels[wins] = plane[wins], k + 1
            self.pixels[k] += int(mask.sum())
            self.boxes[k] = joined(self.boxes[k], box(mask), top, left)
            self._certainty[k] += float(probability(plane[mask]).sum(dtype=np.float64))
            if self._masks is not None:
                self._masks.write(top, left, mask, k)
        if self._labels is not None:
            self._labels.write(top, left, labels)
        self._add_to_overview(top, left, labels, rgb)

    def _add_to_overview(self, top: int, left: int, labels: NDArray[np.integer], rgb: Rgb) -> None:
        down, right = -top % self._step, -left % self._step
        small, marks = rgb[down :: self._step, right :: self._step], labels[down :: self._step, right :: self._step]
        if not marks.size:
            return
        tinted = np.array(small)
        grey = np.asarray(Image.fromarray(tinted).convert("L"))
        for colour in set(((marks[marks > 0].astype(np.int64) - 1) % len(PALETTE)).tolist()):
            shades = np.array([tint(PALETTE[colour], level) for level in range(256)], np.uint8)
            inside = (marks > 0) & ((marks.astype(np.int64) - 1) % len(PALETTE) == colour)
            tinted[inside] = shades[grey[inside]]
        y, x = (top + down) // self._step, (left + right) // self._step
        self._overview[y : y + tinted.shape[0], x : x + tinted.shape[1]] = tinted

    @property
    def areas(self) -> tuple[float, ...]:
        return tuple(float(n) / (self.shape[0] * self.shape[1]) for n in self.pixels)

    @property
    def scores(self) -> tuple[float, ...]:
        return tuple(float(certainty / n) if n else 0.0 for certainty, n in zip(self._certainty, self.pixels))


def joined(known: list[int] | None, other: list[int] | None, top: int, left: int) -> list[int] | None:
    """The box around one in the picture and one in the piece at (top, left)."""
    if other is None:
        return known
    moved = [other[0] + left, other[1] + top, other[2] + left, other[3] + top]
    if known is None:
        return moved
    return [min(known[0], moved[0]), min(known[1], moved[1]), max(known[2], moved[2]), max(known[3], moved[3])]
