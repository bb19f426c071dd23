"""Runs pictures x prompts through a backend in chunks that fit in memory.

Pictures are split before prompts: a picture's trunk is shared by its prompts, and splitting prompts runs it again. When
a backend runs out of memory the chunk is halved and the smaller one is kept for what follows. A profile of shapes (see
docs/bundle.md) splits and pads too: repeated pictures and prompts fill up its smallest shape, and their answers are cut off.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from digseg_engine.errors import BackendError, InputError
from digseg_engine.runtime.backends import Array, Backend, TokenMask, Tokens, failing_as
from digseg_engine.runtime.profile import Profile
from digseg_engine.runtime.prompts import to_length

BUDGET = 2 << 30
BYTES_PER_PIXEL = 64  # of the working picture, for one (picture, prompt) pair: attention scores and maps, generously
OUT_OF_MEMORY = re.compile(
    r"out of memory|failed to allocate|bad.?alloc|cannot allocate|unable to allocate|alloc_failed", re.IGNORECASE
)


class ChunkedRunner:
    """Wraps a backend. Thread-safe; results do not depend on other threads unless memory runs out.

    profile: the shapes a bundle was exported for; a backend with a `profile` of its own (engines built for shapes) is
    kept to that one, its text encoder too.
    """

    def __init__(self, backend: Backend, budget: int = BUDGET, profile: Profile | None = None) -> None:
        self.backend, self.budget = backend, budget
        self._engines: Profile | None = getattr(backend, "profile", None)
        self.profile = self._engines or profile

    def encode(self, token_ids: Tokens, token_mask: TokenMask) -> tuple[Array, Array]:
        """As the backend's `encode_text`. Raises BackendError whatever went wrong."""
        with failing_as(self.backend.name, "to encode a prompt"):
            if self._engines is None:
                return self.backend.encode_text(token_ids, token_mask)
            count, length = len(token_ids), _length(self._engines, token_mask)
            ids, mask = (repeated(array, self._engines.ranges["K"].min) for array in (token_ids, token_mask))
            ids = np.pad(ids, ((0, 0), (0, max(0, length - ids.shape[1]))), "edge")[:, :length]
            keys, values = self.backend.encode_text(ids, to_length(mask, length, 1))
            return keys[:count], values[:count]

    def segment(
        self, image: Array, keys: Array, values: Array, mask: TokenMask
    ) -> tuple[NDArray[np.float32], tuple[str, ...]]:
        """image [B, 3, H, W], folded text of K prompts -> logits [B, K, h', w'] and notes on what had to be done.

        Raises BackendError when one prompt about one picture does not fit.
        """
        notes: list[str] = []
        if self.profile is not None:
            length = _length(self.profile, mask)
            keys, values, mask = to_length(keys, length, 4), to_length(values, length, 3), to_length(mask, length, 1)
        while True:
            pairs = max(
                1, min(self.budget // (BYTES_PER_PIXEL * image.shape[2] * image.shape[3]), len(image) * len(keys))
            )
            try:
                return self._in_chunks(image, keys, values, mask, pairs), tuple(notes)
            except (BackendError, MemoryError) as error:
                if not (isinstance(error, MemoryError) or OUT_OF_MEMORY.search(str(error))):
                    raise
                if pairs == 1:
                    raise BackendError(
                        f"backend {self.backend.name} is out of memory for one prompt about one picture of "
                        f"{image.shape[3]}x{image.shape[2]} pixels; work at a smaller size (--imgsz) or in tiles (--tile 512)"
                    ) from error
                notes.append(f"out of memory with {pairs} masks at once, went on with {pairs // 2}")
                self.budget = (pairs // 2) * BYTES_PER_PIXEL * image.shape[2] * image.shape[3]

    def _in_chunks(self, image: Array, keys: Array, values: Array, mask: TokenMask, pairs: int) -> NDArray[np.float32]:
        ranges = {} if self.profile is None else self.profile.ranges
        prompts = min(len(keys), pairs, ranges["K"].max if ranges else pairs)
        pictures = min(max(1, pairs // prompts), ranges["B"].max if ranges else pairs)
        rows = []
        for i in range(0, len(image), pictures):
            batch = slice(i, i + pictures)
            with failing_as(
                self.backend.name, f"on {pictures} x {prompts} masks of {image.shape[3]}x{image.shape[2]} pixels"
            ):
                parts = [
                    self._padded(image[batch], keys[k : k + prompts], values[k : k + prompts], mask[k : k + prompts])
                    for k in range(0, len(keys), prompts)
                ]
            rows.append(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1))
        return rows[0] if len(rows) == 1 else np.concatenate(rows)

    def _padded(self, image: Array, keys: Array, values: Array, mask: TokenMask) -> NDArray[np.float32]:
        """One call of the backend, filled up to the profile's smallest shape; what was added is cut from the answer."""
        if self.profile is None:
            return self.backend.segment(image, keys, values, mask)
        pictures, prompts = (self.profile.ranges[axis].min for axis in "BK")
        text = (repeated(array, prompts) for array in (keys, values, mask))
        return self.backend.segment(repeated(image, pictures), *text)[: len(image), : len(keys)]


def repeated(array: Array, least: int) -> Array:
    """The array with its last entry repeated until there are `least`."""
    missing = least - len(array)
    return array if missing <= 0 else np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])


def _length(profile: Profile, mask: TokenMask) -> int:
    """Tokens that prompts are padded or cut to. Raises InputError when one is longer than the profile allows."""
    span, longest = profile.ranges["L"], int(mask.sum(1).max())
    if longest > span.max:
        raise InputError(f"a prompt has {longest} tokens, this model was exported for at most {span.max} (start and end "
                         "included); shorten it")  # fmt: skip
    return min(max(int(mask.shape[1]), span.min), span.max)
