"""The most memory that this process held at a time."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def forget_peak() -> None:
    """Count from now on, where the system can (Linux); elsewhere the peak is that of the whole process so far."""
    with suppress(OSError):
        RESET.write_text("5")


def peak_bytes() -> int | None:
    """The highest resident set since `forget_peak`; None where nobody counts it."""
    with suppress(OSError, StopIteration, ValueError):
        lines = STATUS.read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
    with suppress(ImportError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
    return None
