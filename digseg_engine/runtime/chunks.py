"""Runs pictures x prompts through a backend in chunks that fit in memory.

Pictures are split before prompts: a picture's trunk is shared by its prompts, and splitting prompts runs it again. When
a backend runs out of memory the chunk is halved and the smaller one is kept for what follows.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from digseg_engine.errors import BackendError
from digseg_engine.runtime.backends import Array, Backend, TokenMask, Tokens, failing_as

BUDGET = 2 << 30
BYTES_PER_PIXEL = 64  # of the working picture, for one (picture, prompt) pair: attention scores and maps, generously
OUT_OF_MEMORY = re.compile(
    r"out of memory|failed to allocate|bad.?alloc|cannot allocate|unable to allocate|alloc_failed", re.IGNORECASE
)


class ChunkedRunner:
    """Wraps a backend's `segment`. Thread-safe; results do not depend on other threads unless memory runs out."""

    def __init__(self, backend: Backend, budget: int = BUDGET) -> None:
        self.backend, self.budget = backend, budget

    def encode(self, token_ids: Tokens, token_mask: TokenMask) -> tuple[Array, Array]:
        """As the backend's `encode_text`. Raises BackendError whatever went wrong."""
        with failing_as(self.backend.name, "to encode a prompt"):
            return self.backend.encode_text(token_ids, token_mask)

    def segment(
        self, image: Array, keys: Array, values: Array, mask: TokenMask
    ) -> tuple[NDArray[np.float32], tuple[str, ...]]:
        """image [B, 3, H, W], folded text of K prompts -> logits [B, K, h', w'] and notes on what had to be done.

        Raises BackendError when one prompt about one picture does not fit.
        """
        notes: list[str] = []
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
                        f"out of memory for one prompt about one picture of {image.shape[3]}x{image.shape[2]} pixels; "
                        "work at a smaller size (--imgsz) or in tiles (--tile 512)"
                    ) from error
                notes.append(f"out of memory with {pairs} masks at once, went on with {pairs // 2}")
                self.budget = (pairs // 2) * BYTES_PER_PIXEL * image.shape[2] * image.shape[3]

    def _in_chunks(self, image: Array, keys: Array, values: Array, mask: TokenMask, pairs: int) -> NDArray[np.float32]:
        prompts = min(len(keys), pairs)
        pictures = max(1, pairs // prompts)
        rows = []
        for i in range(0, len(image), pictures):
            cut = slice(i, i + pictures)
            with failing_as(
                self.backend.name, f"on {pictures} x {prompts} masks of {image.shape[3]}x{image.shape[2]} pixels"
            ):
                parts = [
                    self.backend.segment(
                        image[cut], keys[k : k + prompts], values[k : k + prompts], mask[k : k + prompts]
                    )
                    for k in range(0, len(keys), prompts)
                ]
            rows.append(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1))
        return rows[0] if len(rows) == 1 else np.concatenate(rows)
