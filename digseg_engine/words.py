"""Numbers in sentences, as people write them. Torch-free."""

from __future__ import annotations


def counted(number: int, noun: str, several: str = "") -> str:
    """ "1 picture", "3 pictures"; `several` for a plural that is more than an s."""
    return f"{number} {noun if number == 1 else several or noun + 's'}"
