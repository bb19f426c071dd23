"""Numbers in sentences, as people write them. Torch-free."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def counted(number: int, noun: str, several: str = "") -> str:
    """ "1 picture", "3 pictures"; `several` for a plural that is more than an s."""
    return f"{number} {noun if number == 1 else several or noun + 's'}"


def readable(seconds: float) -> str:
    """A duration as people say it: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ "; did you mean student?" where a known word is close to `word`, else nothing."""
    close = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {close[0]}?" if close else ""
