"""The most memory that this process held at a time."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
SLACK = 8 << 20  # bytes; between two looks at what a process holds


def forget_peak() -> bool:
    """Count from now on, where the system can (Linux; some sandboxes do not let a process); elsewhere the peak is that of the
    whole process so far. True where it counts from now on."""
    before = _status("VmHWM")
    with suppress(OSError):
        RESET.write_text("5")
        held, peak = _status("VmRSS"), _status("VmHWM")
        return None not in (before, held, peak) and (peak < before or peak - held < SLACK)  # type: ignore[operator]
    return False


def peak_bytes() -> int | None:
    """The highest resident set since `forget_peak`; None where nobody counts it."""
    counted = _status("VmHWM")
    if counted is not None:
        return counted
    with suppress(ImportError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
    return None


def _status(name: str) -> int | None:
    """A size that Linux says of this process, in bytes; None where it is not said."""
    with suppress(OSError, StopIteration, ValueError):
        return 1024 * int(
            next(line.split()[1] for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
        )
    return None
