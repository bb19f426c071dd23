"""How long a stage still takes, said once where no progress bar shows it, and when the next save by time is due."""

from __future__ import annotations

import sys
import time


class Clock:
    """Counts from the first step that this process trains."""

    def __init__(self, name: str, start: int, last: int, save_minutes: float, speaks: bool) -> None:
        self.name, self.start, self.last, self.save_minutes = name, start, last, save_minutes
        self.quiet = not speaks or sys.stderr.isatty()
        self.began = self.last_save = time.monotonic()

    def tell(self, done: int) -> None:
        """Print the time left, once, after the first steps (the very first one is slower than the others)."""
        if done - self.start == 1:
            self.second = time.monotonic()
        elif done - self.start >= 5 and not self.quiet:
            self.quiet = True
            seconds = (time.monotonic() - self.second) / (done - self.start - 1)
            left = readable(seconds * (self.last - done))
            print(f"{self.name}: {seconds:.2f} s a step, about {left} left", file=sys.stderr, flush=True)

    def due(self) -> bool:
        """Whether a save by time is due."""
        return time.monotonic() - self.last_save > 60 * self.save_minutes

    def saved(self) -> None:
        self.last_save = time.monotonic()


def readable(seconds: float) -> str:
    """A duration as people say it: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
