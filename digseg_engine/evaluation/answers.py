"""What a predictor answers about one picture: small logits and where they lie, enlarged only as far as somebody looks.

150 prompts about a picture of 8 megapixels are 4.8 GB of full-size logits. An `Answer` keeps what the model gave and makes
the rows of the picture that are asked for. Several views (windows, scales, mirrored pictures) are averaged where they
overlap, as logits, which is what sliding-window inference of the field does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from digseg_engine.evaluation.views import Box
from digseg_engine.images import Frame

STRIP = 1 << 22  # logits of all prompts that are enlarged together: 16 MB
KEPT = 1 << 25  # widened logits that are kept for all strips of a picture: 128 MB


@dataclass(frozen=True)
class View:
    """Logits of a part of a picture.

    planes: [K, h, w]; content: rows and columns of them that are no padding, in cells; box: left, top, right, bottom of
    that part in the picture's pixels; mirrored: the columns run from right to left.
    """

    planes: Tensor
    content: tuple[float, float]
    box: Box
    mirrored: bool = False

    @classmethod
    def of_frame(cls, planes: Tensor, frame: Frame, left: int = 0, top: int = 0, mirrored: bool = False) -> View:
        """Planes of a picture that lies at (left, top) in a larger one, or is it."""
        ratio = frame.working[1] / planes.shape[-1]
        (rows, columns), (height, width) = frame.content, frame.original
        return cls(planes, (rows / ratio, columns / ratio), (left, top, left + width, top + height), mirrored)

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows start..stop of the picture, as far as the view reaches, [K, rows, columns of the view]."""
        top, bottom = max(start, self.box[1]) - self.box[1], min(stop, self.box[3]) - self.box[1]
        down = self._down[top:bottom]
        used = (down != 0).any(0).nonzero()
        first, last = int(used[0]), int(used[-1]) + 1
        across = self._widened(first, last)
        return torch.bmm(down[:, first:last].expand(len(across), -1, -1), across)

    def _widened(self, first: int, last: int) -> Tensor:
        """Some rows of the planes, brought to the columns of the picture; of planes that are small enough all at once."""
        if self.planes[..., 0].numel() * len(self._across) <= KEPT:
            return self._wide[:, first:last]
        return self.planes[:, first:last] @ self._across.T

    @cached_property
    def _wide(self) -> Tensor:
        return self.planes @ self._across.T

    @cached_property
    def _down(self) -> Tensor:
        return self._weights(self.box[3] - self.box[1], self.content[0], self.planes.shape[1])

    @cached_property
    def _across(self) -> Tensor:
        across = self._weights(self.box[2] - self.box[0], self.content[1], self.planes.shape[2])
        return across.flip(0) if self.mirrored else across

    def _weights(self, pixels: int, content: float, cells: int) -> Tensor:
        return torch.from_numpy(bilinear(pixels, content, cells)).to(self.planes)


@dataclass(frozen=True)
class Answer:
    """Logits of K prompts about a picture of `shape` (height, width); 0 is the border of a mask. present: which prompts the
    model's presence readout holds to be there [K], None for a model without one."""

    shape: tuple[int, int]
    views: tuple[View, ...]
    present: NDArray[np.bool_] | None = None

    @classmethod
    def of(cls, logits: object) -> Answer:
        """An answer as it is, or full-size logits [K, H, W]."""
        if isinstance(logits, Answer):
            return logits
        planes = torch.as_tensor(logits).float()
        height, width = (int(side) for side in planes.shape[1:])
        return cls((height, width), (View(planes, (height, width), (0, 0, width, height)),))

    @property
    def count(self) -> int:
        """K, the number of prompts."""
        return int(self.views[0].planes.shape[0])

    @property
    def device(self) -> torch.device:
        return self.views[0].planes.device

    def rows(self, start: int, stop: int) -> Tensor:
        """Logits [K, stop - start, W] of some rows of the picture."""
        over = [view for view in self.views if view.box[1] < stop and view.box[3] > start]
        width = self.shape[1]
        if len(over) == 1 and over[0].box[0] == 0 and over[0].box[2] == width:
            return over[0].rows(start, stop)
        total = torch.zeros(self.count, stop - start, width, device=self.device)
        seen = torch.zeros(stop - start, width, device=self.device)
        for view in over:
            left, top, right, bottom = view.box
            lines = slice(max(top, start) - start, min(bottom, stop) - start)
            total[:, lines, left:right] += view.rows(start, stop)
            seen[lines, left:right] += 1
        return total / seen

    def strips(self) -> Iterator[tuple[slice, Tensor]]:
        """(rows, their logits [K, rows, W]) from top to bottom, a bounded number at a time."""
        height, width = self.shape
        step = max(1, STRIP // (self.count * width))
        for start in range(0, height, step):
            stop = min(height, start + step)
            yield slice(start, stop), self.rows(start, stop)

    def whole(self) -> NDArray[np.float32]:
        """All logits, [K, H, W]."""
        return np.asarray(self.rows(0, self.shape[0]).cpu().numpy(), np.float32)

    def masks(self) -> NDArray[np.bool_]:
        """The masks of all prompts, each as if it were the only one, [K, H, W]."""
        found = np.empty((self.count, *self.shape), bool)
        for rows, logits in self.strips():
            found[:, rows] = (logits > 0).cpu().numpy()
        return found


@lru_cache(maxsize=64)
def bilinear(pixels: int, content: float, cells: int) -> NDArray[np.float32]:
    """Weights [pixels, cells] that bring the first `content` of so many cells to `pixels` as Pillow's BILINEAR does:
    a triangle around every pixel's centre, as wide as the larger of a pixel and a cell, cut at the last cell."""
    scale = content / pixels
    reach = max(scale, 1.0)
    weights = np.zeros((pixels, cells), np.float64)
    for i in range(pixels):
        centre = (i + 0.5) * scale
        first, last = max(0, int(centre - reach + 0.5)), min(cells, int(centre + reach + 0.5))
        triangle = 1 - np.abs((np.arange(first, last) - centre + 0.5) / reach)
        weights[i, first:last] = triangle.clip(0)
    return np.asarray(weights / weights.sum(1, keepdims=True), np.float32)
