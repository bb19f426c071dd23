"""Our bundle, as the engine runs it, every prompt decoded: text, picture, presence and masks up to the logits, which is what
is set beside the peers; and the whole, from a picture to full-size masks and the label map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from digseg_engine import Engine
from digseg_engine.runtime.bench_worker import pictures_of
from digseg_engine.runtime.choice import Task
from digseg_engine.runtime.presence import ask


class Ours:
    """A bundle on one backend."""

    def __init__(self, bundle: Path, backend: str, size: int, threads: int) -> None:
        self.engine, self.size = Engine.load(bundle, backend, threads=threads), size
        self.detail = self.engine.backend.detail
        (self.picture,) = pictures_of(Task(size))
        self.pixels = np.ascontiguousarray(self.picture.transpose(2, 0, 1)[None], np.float32) / 127.5 - 1
        self._encoding: Any = None
        self._folded: dict[int, Any] = {}

    def first(self, count: int) -> None:
        """Prompts and picture encoded, prompts answered."""
        self.engine.prompts.clear()
        self._ask(self._encode(), self.engine.prompts.fold(prompts(count)))

    def later(self, count: int) -> None:
        """Picture and prompts encoded before."""
        if self._encoding is None:
            self._encoding = self._encode()
        if count not in self._folded:
            self._folded[count] = self.engine.prompts.fold(prompts(count))
        self._ask(self._encoding, self._folded[count])

    def whole(self, count: int) -> None:
        """A first question end to end, without writing files."""
        self.engine.prompts.clear()
        self.engine.segment(self.picture, prompts(count), self.size, all_prompts=True)

    def _encode(self) -> Any:
        (place,), _ = self.engine.runner.encode(self.pixels)
        return place

    def _ask(self, encoding: Any, text: Any) -> None:
        ask(self.engine.runner, encoding, text, self.engine.gate.opened(True))


def prompts(count: int) -> list[str]:
    return [f"thing {i}" for i in range(count)]
