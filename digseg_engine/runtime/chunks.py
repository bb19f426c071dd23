"""Runs pictures and prompts through a backend in chunks that fit in memory.

Pictures are encoded so many at a time; prompts are asked so many at a time about what was encoded, which is never done again.
When a backend runs out of memory the chunk is halved and the smaller one is kept for what follows. A profile of shapes (see
docs/bundle.md) splits and pads too: repeated pictures and prompts fill up its smallest shape, and their answers are cut off.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from digseg_engine.errors import BackendError, InputError
from digseg_engine.runtime.backends import Array, Backend, Kept, TokenMask, Tokens, failing_as
from digseg_engine.runtime.profile import Profile
from digseg_engine.runtime.prompts import to_length

BUDGET = 2 << 30
BYTES_PER_PIXEL = 64  # of the working picture, for one picture or one mask: attention scores and maps, generously
FOLDED_TOGETHER = 32  # names that a folded bundle's graph computes at once
OUT_OF_MEMORY = re.compile(
    r"out of memory|failed to allocate|bad.?alloc|cannot allocate|unable to allocate|alloc_failed", re.IGNORECASE
)
T = TypeVar("T")
Text = tuple[Array, Array, TokenMask]  # of K prompts: keys [K, S, H, d, L], values [K, S, H, L, Co], mask [K, L]
Noted = tuple[T, tuple[str, ...]]  # and notes on what had to be done


@dataclass(frozen=True, eq=False)
class Stretch:
    """Neighbours among pictures that were encoded together: numbers first to last - 1 of `kept`; working: (height, width)
    of each in the model's pixels, padding included."""

    kept: Kept
    first: int
    last: int
    working: tuple[int, int]

    def __len__(self) -> int:
        return self.last - self.first

    def part(self, pictures: slice) -> Stretch:
        """Some of its pictures, counted from its own first."""
        start, stop, _ = pictures.indices(len(self))
        return Stretch(self.kept, self.first + start, self.first + stop, self.working)

    def window(self, least: int) -> tuple[Any, slice]:
        """The encoding of at least so many pictures, neighbours taken in where it has fewer, and which of them are its own."""
        low = max(0, min(self.first, len(self.kept) - least))
        high = max(self.last, low + least)
        return self.kept[low:high], slice(self.first - low, self.last - low)


def joined(places: Iterable[Stretch]) -> list[Stretch]:
    """Stretches in order, neighbours made one."""
    found: list[Stretch] = []
    for place in places:
        before = found[-1] if found else None
        if before is not None and before.kept is place.kept and before.last == place.first:
            found[-1] = Stretch(place.kept, before.first, place.last, place.working)
        else:
            found.append(place)
    return found


class Room:
    """How much a backend takes at once, in bytes; halved when it runs out of memory. things: what is counted, in words."""

    def __init__(self, budget: int, things: str) -> None:
        self.budget, self.things = budget, things

    def share(self, most: int, working: tuple[int, int], run: Callable[[int], T], name: str, one: str) -> Noted[T]:
        """`run` with the number of things at once, at most `most`, and what had to be said. Raises BackendError where not even
        `one` fits."""
        each, notes = BYTES_PER_PIXEL * working[0] * working[1], list[str]()
        while True:
            count = max(1, min(self.budget // each, most))
            try:
                return run(count), tuple(notes)
            except (BackendError, MemoryError) as error:
                if not (isinstance(error, MemoryError) or OUT_OF_MEMORY.search(str(error))):
                    raise
                if count == 1:
                    raise BackendError(
                        f"backend {name} is out of memory for {one} of {working[1]}x{working[0]} pixels; work at a smaller "
                        "size (--imgsz) or in tiles (--tile 512)"
                    ) from error
                notes.append(f"out of memory with {count} {self.things} at once, went on with {count // 2}")
                self.budget = (count // 2) * each


class ChunkedRunner:
    """Wraps a backend. Thread-safe; results do not depend on other threads unless memory runs out.

    profile: the shapes a bundle was exported for; a backend with a `profile` of its own (engines built for shapes) is
    kept to that one, its text encoder too. names: how many a folded bundle answers for.
    """

    def __init__(
        self, backend: Backend, budget: int = BUDGET, profile: Profile | None = None, names: int = 0
    ) -> None:  # fmt: skip
        self.backend, self.names = backend, names
        self._pictures, self._masks = Room(budget, "pictures"), Room(budget, "masks")
        self._engines: Profile | None = getattr(backend, "profile", None)
        self.profile = self._engines or profile

    def encode_text(self, token_ids: Tokens, token_mask: TokenMask) -> tuple[Array, Array]:
        """As the backend's. Raises BackendError whatever went wrong."""
        with failing_as(self.backend.name, "to encode a prompt"):
            if self._engines is None:
                return self.backend.encode_text(token_ids, token_mask)
            count, length = len(token_ids), _length(self._engines, token_mask)
            ids, mask = (repeated(array, self._engines.ranges["K"].min) for array in (token_ids, token_mask))
            ids = np.pad(ids, ((0, 0), (0, max(0, length - ids.shape[1]))), "edge")[:, :length]
            keys, values = self.backend.encode_text(ids, to_length(mask, length, 1))
            return keys[:count], values[:count]

    def encode(self, image: Any) -> Noted[list[Stretch]]:
        """image [B, 3, H, W], an array or for a backend that takes them a tensor -> where each picture's encoding is.

        Raises BackendError when one picture does not fit.
        """
        working = (int(image.shape[2]), int(image.shape[3]))
        most = min(len(image), self._most("B"))

        def run(count: int) -> list[Stretch]:
            return [
                place for i in range(0, len(image), count) for place in self._encoded(image[i : i + count], working)
            ]

        return self._pictures.share(most, working, run, self.backend.name, "one picture")

    def _encoded(self, image: Any, working: tuple[int, int]) -> list[Stretch]:
        with failing_as(self.backend.name, f"to encode {len(image)} pictures of {working[1]}x{working[0]} pixels"):
            kept = self.backend.encode_image(repeated(image, self._least("B")))
        return [Stretch(kept, i, i + 1, working) for i in range(len(image))]

    def presence(self, about: Stretch, text: Text) -> Noted[Array | None]:
        """Presence logits [n, K] of K prompts about n pictures, None for a model without the readout."""
        return self._asked(self.backend.presence, about, text)

    def decode(self, about: Stretch, text: Text, tensors: bool = False) -> Noted[Any]:
        """Logits [n, K, h', w'] of K prompts about n pictures; tensors: where the backend has them.

        Raises BackendError when one prompt about one picture does not fit.
        """
        run = self.backend.decode_tensor if tensors else self.backend.decode  # type: ignore[attr-defined]
        return self._asked(run, about, text)

    def labels(self, about: Stretch, wanted: tuple[str, ...]) -> Noted[dict[str, Any]]:
        """What a folded bundle answers about n pictures, [n, ...] each, by name of the contract: what is wanted and it has."""
        height, width = about.working

        def run(pairs: int) -> dict[str, Any]:
            pictures = min(max(1, pairs // max(1, min(self.names, FOLDED_TOGETHER))), self._most("B"))
            parts = []
            for i in range(0, len(about), pictures):
                part = about.part(slice(i, i + pictures))
                kept, own = part.window(self._least("B"))
                with failing_as(self.backend.name, f"on {len(part)} pictures of {width}x{height} pixels"):
                    found = self.backend.labels(kept, wanted)  # type: ignore[attr-defined]
                parts.append({name: array[own] for name, array in found.items()})
            return {name: together([part[name] for part in parts], 0) for name in parts[0]}

        most = len(about) * max(1, min(self.names, FOLDED_TOGETHER))
        return self._masks.share(most, about.working, run, self.backend.name, "one picture")

    def _asked(self, question: Callable[..., Any], about: Stretch, text: Text) -> Noted[Any]:
        keys, values, mask = text
        if self.profile is not None:
            length = _length(self.profile, mask)
            text = to_length(keys, length, 4), to_length(values, length, 3), to_length(mask, length, 1)

        def run(pairs: int) -> Any:
            prompts = min(len(mask), pairs, self._most("K"))
            pictures = min(max(1, pairs // prompts), self._most("B"))
            rows = []
            for i in range(0, len(about), pictures):
                part = about.part(slice(i, i + pictures))
                chunks = [self._one(question, part, text, slice(k, k + prompts)) for k in range(0, len(mask), prompts)]
                rows.append(together(chunks, 1))
            return together(rows, 0)

        one = "one prompt about one picture"
        return self._masks.share(len(about) * len(mask), about.working, run, self.backend.name, one)

    def _one(self, question: Callable[..., Any], about: Stretch, text: Text, prompts: slice) -> Any:
        """One call of the backend, filled up to the profile's smallest shape; what was added is cut from the answer."""
        kept, own = about.window(self._least("B"))
        keys, values, mask = (array[prompts] for array in text)
        height, width = about.working
        with failing_as(self.backend.name, f"on {len(about)} x {len(mask)} masks of {width}x{height} pixels"):
            answer = question(kept, *(repeated(array, self._least("K")) for array in (keys, values, mask)))
        return None if answer is None else answer[own, : len(mask)]

    def _least(self, axis: str) -> int:
        return 1 if self.profile is None else self.profile.ranges[axis].min

    def _most(self, axis: str) -> int:
        return 1 << 30 if self.profile is None else self.profile.ranges[axis].max


def together(parts: list[Any], axis: int) -> Any:
    """Arrays or tensors behind one another; None where the backend answers nothing."""
    if len(parts) == 1 or parts[0] is None:
        return parts[0]
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts, axis)
    import torch

    return torch.cat(parts, axis)


def repeated(array: Any, least: int) -> Any:
    """The array or tensor with its last entry repeated until there are `least`."""
    missing = least - len(array)
    return array if missing <= 0 else together([array, *[array[-1:]] * missing], 0)


def _length(profile: Profile, mask: TokenMask) -> int:
    """Tokens that prompts are padded or cut to. Raises InputError when one is longer than the profile allows."""
    span, longest = profile.ranges["L"], int(mask.sum(1).max())
    if longest > span.max:
        raise InputError(f"a prompt has {longest} tokens, this model was exported for at most {span.max} (start and end "
                         "included); shorten it")  # fmt: skip
    return min(max(int(mask.shape[1]), span.min), span.max)
