"""Writes a large result piece by piece: label map and masks as `.npy`, an overview picture, areas and scores."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import DTypeLike
from PIL import Image

from digseg_engine.images import Float, Rgb
from digseg_engine.runtime.saving import PALETTE

OVERVIEW = 2048  # longest side of the overview, pixels


class NpyFile:
    """An array on disk, in C order, filled by pieces of rows without being mapped (mapped pages count as memory)."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self.path, self.shape, self.dtype = path, shape, np.dtype(dtype)
        self._file: BinaryIO = path.open("wb")
        npy.write_array_header_1_0(
            self._file, {"descr": npy.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        )
        self._start = self._file.tell()
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
    """Takes full-size logits of pieces in any order; `finish` gives the files, `areas` and `scores` are then complete."""

    def __init__(self, folder: Path, stem: str, shape: tuple[int, int], prompts: tuple[str, ...], masks: bool) -> None:
        self.folder, self.stem, self.shape = folder, stem, shape
        self._labels = NpyFile(folder / f"{stem}.labels.npy", shape, np.uint8 if len(prompts) < 256 else np.uint16)
        wanted = (len(prompts), *shape)
        self._masks = NpyFile(folder / f"{stem}.masks.npy", wanted, np.bool_) if masks else None
        self._step = -(-max(shape) // OVERVIEW)
        self._overview = np.zeros((-(-shape[0] // self._step), -(-shape[1] // self._step), 3), np.uint8)
        self._pixels = np.zeros(len(prompts), np.int64)
        self._certainty = np.zeros(len(prompts), np.float64)

    def write(self, top: int, left: int, logits: Float, rgb: Rgb) -> None:
        """Full-size logits [K, h, w] and the picture [h, w, 3] of one piece."""
        best = np.zeros(logits.shape[1:], np.float32)
        labels = np.zeros(logits.shape[1:], self._labels.dtype)
        for k, plane in enumerate(logits):
            mask, wins = plane > 0, plane > best
            best[wins], labels[wins] = plane[wins], k + 1
            self._pixels[k] += int(mask.sum())
            self._certainty[k] += float((1 / (1 + np.exp(-plane[mask].astype(np.float64)))).sum())
            if self._masks is not None:
                self._masks.write(top, left, mask, k)
        self._labels.write(top, left, labels)
        self._add_to_overview(top, left, labels, rgb)

    def _add_to_overview(self, top: int, left: int, labels: np.ndarray, rgb: Rgb) -> None:  # type: ignore[type-arg]
        down, right = -top % self._step, -left % self._step
        small, marks = rgb[down :: self._step, right :: self._step], labels[down :: self._step, right :: self._step]
        colours = np.array([(0, 0, 0), *PALETTE], np.uint16)
        shown = np.where(marks > 0, (marks.astype(np.int64) - 1) % len(PALETTE) + 1, 0)
        tinted = np.where(marks[..., None] > 0, (small.astype(np.uint16) + colours[shown]) // 2, small)
        y, x = (top + down) // self._step, (left + right) // self._step
        self._overview[y : y + tinted.shape[0], x : x + tinted.shape[1]] = tinted

    @property
    def areas(self) -> tuple[float, ...]:
        return tuple(float(n) / (self.shape[0] * self.shape[1]) for n in self._pixels)

    @property
    def scores(self) -> tuple[float, ...]:
        return tuple(float(c / n) if n else 0.0 for c, n in zip(self._certainty, self._pixels))

    def finish(self) -> tuple[Path, ...]:
        """Close the arrays, write the overview; returns label map, JSON (to be written), overview and masks."""
        self.close()
        picture = self.folder / f"{self.stem}.overview.png"
        Image.fromarray(self._overview).save(picture)
        files = (self._labels.path, self.folder / f"{self.stem}.json", picture)
        return files if self._masks is None else (*files, self._masks.path)

    def close(self) -> None:
        self._labels.close()
        if self._masks is not None:
            self._masks.close()
