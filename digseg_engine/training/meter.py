"""How fast a stage trains and how much memory it takes, for the log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

FIGURES = ("pictures_per_second", "memory_mb")  # columns of the log that are no losses


class Meter:
    """Pictures and seconds since the figures were last read; time that is not spent on steps is left out."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.pictures, self.began = device, 0, time.monotonic()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def count(self, pictures: int) -> None:
        """A step with so many pictures, of all processes, is done."""
        self.pictures += pictures

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While open, no time passes."""
        stopped = time.monotonic()
        try:
            yield
        finally:
            self.began += time.monotonic() - stopped

    def read(self) -> dict[str, float]:
        """Pictures a second since the last call, of all processes, and this process's peak memory in MB (10^6 bytes)."""
        now = time.monotonic()
        speed = self.pictures / max(now - self.began, 1e-9)
        self.pictures, self.began = 0, now
        return dict(zip(FIGURES, (round(speed, 3), round(peak_memory(self.device) / 1e6, 1))))


def peak_memory(device: torch.device) -> int:
    """Bytes: on a GPU the most that tensors took since the meter began, else the most that the process ever held."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        import psutil  # comes with accelerate

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
