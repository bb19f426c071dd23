"""How long a stage still takes, said where no progress bar shows it, and when the next save by time is due."""

from __future__ import annotations

import sys
import time

from digseg_engine.words import readable

FIRST, SELDOM = 30.0, 600.0  # seconds between two lines: doubled after each, up to the second


class StageTimer:
    """Counts from the first step that this process trains."""

    def __init__(self, name: str, start: int, last: int, save_minutes: float, speaks: bool) -> None:
        self.name, self.start, self.last, self.save_minutes = name, start, last, save_minutes
        self.quiet = not speaks or sys.stderr.isatty()
        self.began = self.last_save = time.monotonic()
        self.next, self.gap = 0.0, FIRST

    def tell(self, done: int, more: str = "") -> None:
        """Print the time left after the first steps (the very first one is slower than the others), then ever more seldom."""
        now = time.monotonic()
        if done - self.start == 1:
            self.second = now
        elif done - self.start >= 5 and not self.quiet and now >= self.next and done < self.last:
            self.next, self.gap = now + self.gap, min(2 * self.gap, SELDOM)
            seconds = (now - self.second) / (done - self.start - 1)
            left = readable(seconds * (self.last - done))
            print(f"{self.name}: step {done} of {self.last}, {seconds:.2f} s a step, about {left} left"
                  f"{', ' if more else ''}{more}", file=sys.stderr, flush=True)  # fmt: skip

    def due(self) -> bool:
        """Whether a save by time is due."""
        return time.monotonic() - self.last_save > 60 * self.save_minutes

    def saved(self) -> None:
        self.last_save = time.monotonic()
