"""Encoded pictures that are kept to be asked again: the least recently asked goes first, under bounds of number, bytes and time.

Used from the event loop alone, so it has no lock. An encoding that is let go while it is being asked lives until then.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from digseg_engine.runtime.encoding import Encoding
from digseg_engine.serving.limits import Limits
from digseg_engine.serving.problems import too_large, unknown_encoding


@dataclass
class Kept:
    """An encoding, the name of its model, the bytes it occupies with the picture's own pixels, and when it was last used."""

    encoding: Encoding
    model: str
    nbytes: int
    used: float


class Shelf:
    """At most `limits.encodings` pictures, `limits.encoding_bytes` bytes, each `limits.encoding_seconds` after its last use. An
    identifier is random, so that nobody can ask about another's picture by guessing."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits, self.clock, self.nbytes = limits, clock, 0
        self._kept: OrderedDict[str, Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, encoding: Encoding, model: str) -> str:
        """Keep it; returns its identifier. Raises RequestError for one that is larger than everything that may be kept."""
        nbytes = encoding.nbytes + encoding.picture.pixels.nbytes
        if nbytes > self.limits.encoding_bytes:
            raise too_large(f"the encoded picture takes {nbytes} bytes, at most {self.limits.encoding_bytes} are kept; reduce "
                            "the picture, or ask about it with /v1/segment at once")  # fmt: skip
        name = secrets.token_urlsafe(18)
        self._kept[name] = Kept(encoding, model, nbytes, self.clock())
        self.nbytes += nbytes
        while len(self._kept) > self.limits.encodings or self.nbytes > self.limits.encoding_bytes:
            self.drop(next(iter(self._kept)))
        self.sweep()
        return name

    def get(self, name: str) -> Kept:
        """What is kept under an identifier; it counts as used now. Raises RequestError where nothing is."""
        self.sweep()
        if name not in self._kept:
            raise unknown_encoding(name)
        self._kept.move_to_end(name)
        self._kept[name].used = self.clock()
        return self._kept[name]

    def drop(self, name: str) -> None:
        """Raises RequestError where nothing is kept under this identifier."""
        if name not in self._kept:
            raise unknown_encoding(name)
        self.nbytes -= self._kept.pop(name).nbytes

    def sweep(self) -> None:
        """Let go of what nobody asked about for too long."""
        oldest = self.clock() - self.limits.encoding_seconds
        for name in [name for name, kept in self._kept.items() if kept.used < oldest]:
            self.drop(name)
