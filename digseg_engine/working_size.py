"""At how many pixels a picture is worked where nobody says: one rule, which C and JavaScript keep too (docs/bundle.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class WorkingSize:
    """Pixels of the longer side that pictures are worked at where no size is asked for: a picture's own, but at least `usual`,
    what the model was trained for, and at most `largest`, up to which it was found to do no worse."""

    usual: int
    largest: int

    def of(self, height: int, width: int) -> int:
        """Of a picture of so many pixels."""
        return min(max(height, width, self.usual), max(self.usual, self.largest))

    def __str__(self) -> str:
        return f"{self.usual} px" if self.largest <= self.usual else f"{self.usual} to {self.largest} px"


def working_size(manifest: Mapping[str, Any]) -> WorkingSize:
    """What a bundle says of it; without `image_size_max` every picture is worked at `image_size`."""
    model = manifest["model"]
    usual = int(model["image_size"])
    return WorkingSize(usual, int(model.get("image_size_max") or usual))
