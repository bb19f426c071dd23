"""COCO's compressed run lengths, as pycocotools reads and writes them.

Runs go down the columns (Fortran order), begin with zeros, and from the third on are stored as the difference to the
run two before; each number becomes characters of 5 bits and a continuation bit, starting at chr(48).
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digseg_engine.errors import InputError


def encode(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Boolean mask [H, W] -> {"size": [H, W], "counts": text}."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate([[0], changes, [flat.size]]))
    if flat.size and flat[0]:
        runs = np.concatenate([[0], runs])
    stored = runs.copy()
    stored[3:] -= runs[1:-2]
    return {"size": [int(side) for side in mask.shape], "counts": "".join(_characters(int(run)) for run in stored)}


def decode(rle: Mapping[str, Any]) -> NDArray[np.bool_]:
    """The mask [H, W] of an encoded one: counts as text or bytes (pycocotools' own), or as a list of run lengths (COCO's
    uncompressed form). Raises InputError for anything else and for run lengths that do not fill the size."""
    try:
        height, width = (int(side) for side in rle["size"])
        runs = _runs(rle["counts"])
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise InputError("run lengths must be {'size': [height, width], 'counts': text, bytes or a list of numbers}, got "
                         f"{type(error).__name__}: {error}") from error  # fmt: skip
    if min(height, width) < 0 or sum(runs) != height * width or min(runs, default=0) < 0:
        raise InputError(f"run lengths add up to {sum(runs)}, expected {height}x{width} pixels; the counts are damaged")
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return np.ascontiguousarray(flat.reshape((height, width), order="F"))


def _runs(counts: Any) -> list[int]:
    """Run lengths of either form. Raises ValueError, TypeError or UnicodeError for what is none."""
    if isinstance(counts, (bytes, bytearray)):
        counts = bytes(counts).decode("ascii")
    if not isinstance(counts, str):
        return [operator.index(run) for run in counts]
    if strange := [character for character in counts if not 48 <= ord(character) < 112]:
        raise ValueError(f"the character {strange[0]!r} in counts")
    runs: list[int] = []
    for value in _numbers(counts):
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    return runs


def _characters(value: int) -> str:
    text = ""
    while True:
        bits = value & 31
        value >>= 5
        continues = value != (-1 if bits & 16 else 0)
        text += chr(48 + (bits | 32 if continues else bits))
        if not continues:
            return text


def _numbers(counts: str) -> list[int]:
    found: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            found.append(value - (1 << shift) if bits & 16 else value)
            value = shift = 0
    if shift:
        raise ValueError("counts that end in the middle of a number")
    return found
