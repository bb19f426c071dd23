"""Encoded pictures on a GPU, by address: a tensor of a library that can neither slice nor count its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class Placed:
    """Memory on a GPU that `owner` keeps alive. shape [B, M, H/s, W/s], contiguous; itemsize: bytes of one element."""

    owner: Any
    pointer: int
    shape: tuple[int, ...]
    itemsize: int

    @property
    def _picture(self) -> int:
        """Bytes of one picture."""
        size = self.itemsize
        for length in self.shape[1:]:
            size *= length
        return size

    @property
    def nbytes(self) -> int:
        return len(self) * self._picture

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, pictures: slice) -> Placed:
        """Neighbouring pictures, where they lie."""
        start, stop, _ = pictures.indices(len(self))
        return Placed(self.owner, self.pointer + start * self._picture, (stop - start, *self.shape[1:]), self.itemsize)
