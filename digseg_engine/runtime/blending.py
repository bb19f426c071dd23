"""Overlapping tiles into one plane of logits: weighted sums kept on disk in a ring of rows, so that memory depends on the
tile, not on the picture.

Weights are ramps across the overlap, so a logit changes from one tile's opinion to its neighbour's gradually. Grid
coordinates count logits, not pixels.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]


def positions(length: int, tile: int, step: int) -> list[int]:
    """First cells of tiles that cover 0..length, evenly spread, at most `step` apart; a single 0 when one is enough."""
    if length <= tile:
        return [0]
    count = -(-(length - tile) // step) + 1
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def ramp(tile: int, overlap: int) -> Float:
    """Weights [tile]: 1 in the middle, falling linearly towards (never to) 0 over `overlap` cells at both ends."""
    distance = np.minimum(np.arange(tile), np.arange(tile)[::-1]) + 0.5
    return np.minimum(distance / max(overlap, 1), 1).astype(np.float32)


class Ring:
    """Weighted sums of K planes and their weights, [rows, width, K + 1] float32 in an unnamed file.

    Rows are grid rows modulo `rows`; a row must be cleared before it is used again.
    """

    def __init__(self, rows: int, width: int, planes: int, folder: Path | None = None) -> None:
        self.rows, self.width, self.depth = rows, width, planes + 1
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by close()
        self._file.truncate(rows * width * self.depth * 4)

    def add(self, top: int, left: int, logits: Float, weights: Float) -> None:
        """Add logits [K, h, w] with weights [h, w] at grid row `top`, column `left`."""
        weighted = np.concatenate([logits * weights, weights[None]]).transpose(1, 2, 0)  # [h, w, K + 1]
        for i, row in enumerate(weighted):
            known = self._read(top + i, left, row.shape[0])
            self._write(top + i, left, known + row)

    def mean(self, rows: range, left: int, right: int) -> Float:
        """Blended logits [K, len(rows), right - left]."""
        sums = np.stack([self._read(row, left, right - left) for row in rows])  # [h, w, K + 1]
        return np.ascontiguousarray((sums[..., :-1] / sums[..., -1:]).transpose(2, 0, 1))

    def clear(self, rows: range) -> None:
        """Make rows ready for new sums."""
        zeros = np.zeros((self.width, self.depth), np.float32)
        for row in rows:
            self._write(row, 0, zeros)

    def close(self) -> None:
        self._file.close()

    def _seek(self, row: int, left: int) -> None:
        self._file.seek(((row % self.rows) * self.width + left) * self.depth * 4)

    def _read(self, row: int, left: int, count: int) -> Float:
        self._seek(row, left)
        return np.frombuffer(self._file.read(count * self.depth * 4), np.float32).reshape(count, self.depth)

    def _write(self, row: int, left: int, values: Float) -> None:
        self._seek(row, left)
        self._file.write(np.ascontiguousarray(values, np.float32).tobytes())
