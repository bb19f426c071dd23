"""Encoded pictures: what `Engine.encode` returns, to be asked any number of times."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from digseg_engine.errors import UsageError
from digseg_engine.images import Frame, Picture
from digseg_engine.runtime.chunks import Stretch


@dataclass(frozen=True, eq=False)
class Encoding:
    """One picture, encoded by one engine: everything about it that no prompt changes, kept where the backend keeps it.

    Taken by every method of that engine that takes pictures, from any thread, as often as wanted. place: where the backend has
    it; frame: how the picture lies in the model's pixels; owner: the mark of the engine; notes: what had to be done
    otherwise than planned; seconds: per step that led here.
    """

    picture: Picture
    frame: Frame
    place: Stretch
    owner: object
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Pixels of the longer side that the picture is worked at."""
        return max(self.frame.content)

    @property
    def nbytes(self) -> int:
        """Bytes the backend keeps for it, beside the picture's own pixels."""
        return int(self.place.kept.nbytes)

    def __repr__(self) -> str:
        height, width = self.frame.original
        name = f"{self.picture.path!r}, " if self.picture.path else ""
        return f"Encoding({name}{width}x{height} worked at {self.size}, {self.nbytes / 2**20:.2f} MiB)"

    def check(self, owner: object, size: int | None) -> None:
        """Raises UsageError for the encoding of another engine, and for another working size than its own."""
        if self.owner is not owner:
            raise UsageError("this picture was encoded by another engine, whose model may see it otherwise; encode it with this "
                             "one: engine.encode(picture)")  # fmt: skip
        if size is not None and size != self.size:
            raise UsageError(f"this picture was encoded at a working size of {self.size} pixels, and {size} was asked for; "
                             f"encode it again: engine.encode(picture, size={size})")  # fmt: skip

    def __reduce__(self) -> tuple[Any, ...]:
        raise UsageError("an encoding lies in the memory of its engine and cannot be pickled or copied; pickle the picture and "
                         "encode it there")  # fmt: skip
