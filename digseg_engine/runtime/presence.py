"""Presence: which prompts are in a picture at all. The others are answered "not there" and never reach the mask decoder.

The threshold is absolute (docs/bundle.md), so no prompt changes what another finds, and every picture has its own prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from digseg_engine.contract import ABSENT
from digseg_engine.runtime.chunks import ChunkedRunner, Noted, Stretch, Text, joined, together
from digseg_engine.runtime.folded import Chosen, answer_names

if TYPE_CHECKING:
    from digseg_engine.runtime.source import Source


@dataclass(frozen=True)
class Gate:
    """threshold: the logit under which a prompt is not there, None for a model that leaves nothing out; cell: the pixels of
    one logit along a side."""

    threshold: float | None
    cell: int

    def opened(self, wanted: bool = True) -> Gate:
        """The gate that lets every prompt through, when `wanted`."""
        return Gate(None, self.cell) if wanted else self

    def there(self, presence: NDArray[np.float32] | None, prompts: int, pictures: int) -> NDArray[np.bool_]:
        """Which of K prompts are in which of n pictures, [n, K]. What is no number counts as there."""
        if presence is None or self.threshold is None:
            return np.ones((pictures, prompts), np.bool_)
        return ~(np.asarray(presence) < self.threshold)


def gate_of(source: Source) -> Gate:
    """The gate of a model."""
    threshold = source.presence_threshold
    return Gate(threshold, 1 if threshold is None else source.cell)


@dataclass(frozen=True, eq=False)
class Found:
    """About n pictures: logits [n, K, h', w'] (ABSENT where a prompt is not there), presence logits [n, K] or None, and which
    prompts are there [n, K]."""

    logits: Any
    presence: NDArray[np.float32] | None
    there: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Asker:
    """K prompts, ready to be asked about pictures: their folded text, what runs them and what may be left out.

    stride: what sides of pictures are multiples of.
    """

    runner: ChunkedRunner
    text: Text | Chosen
    gate: Gate
    stride: int

    @property
    def count(self) -> int:
        """Of the prompts."""
        return len(self.text) if isinstance(self.text, Chosen) else len(self.text[2])

    def about_pixels(self, pixels: Any, device: Any = None) -> Noted[Found]:
        """Pixels [B, 3, H, W] in -1..1 -> what is found, its logits on `device` when that is given."""
        places, notes = self.runner.encode(pixels)
        parts = []
        for about in joined(places):
            found, noted = ask(self.runner, about, self.text, self.gate, device=device)
            parts.append(found)
            notes += noted
        logits, presence, there = (
            together([getattr(part, name) for part in parts], 0) for name in ("logits", "presence", "there")
        )
        return Found(logits, presence, there), notes


def ask(
    runner: ChunkedRunner, about: Stretch, text: Text | Chosen, gate: Gate, lap: Callable[[str], None] = lambda name: None,
    device: Any = None,
) -> Noted[Found]:  # fmt: skip
    """K prompts about n encoded pictures: presence of all, masks of those that are there. lap: told what was just done.
    device: the torch device that logits stay on, None for an array."""
    if isinstance(text, Chosen):
        return _ask_names(runner, about, text, gate, lap, device)
    presence, notes = runner.presence(about, text)
    there = gate.there(presence, len(text[2]), len(about))
    if presence is not None:
        lap("presence")
    alike = _alike(there)
    if len(alike) == 1 and there.all():  # nothing to put together
        logits, noted = runner.decode(about, text, device is not None)
        lap("masks")
        return Found(logits, presence, there), notes + noted
    shape = (*there.shape, about.working[0] // gate.cell, about.working[1] // gate.cell)
    logits = _blank(shape, device)
    for pictures in alike:
        active = np.flatnonzero(there[pictures.start])
        if not len(active):
            continue
        asked = _bucketed(active, there.shape[1]) if getattr(runner.backend, "new_shapes_cost", False) else active
        keys, values, mask = (array[asked] for array in text)
        found, noted = runner.decode(about.part(pictures), (keys, values, mask), device is not None)
        for column, k in enumerate(active):
            logits[pictures, int(k)] = found[:, column]
        notes += noted
    lap("masks")
    return Found(logits, presence, there), notes


def _ask_names(
    runner: ChunkedRunner, about: Stretch, chosen: Chosen, gate: Gate, lap: Callable[[str], None], device: Any
) -> Noted[Found]:
    """Names of a folded bundle, all of which its graph answers at once; it has turned away what is not there."""
    (logits, presence), notes = answer_names(runner, about, chosen)
    lap("masks")
    if device is not None:
        import torch

        logits = torch.from_numpy(np.ascontiguousarray(logits)).to(device)
    return Found(logits, presence, gate.there(presence, len(chosen), len(about))), notes


def _alike(there: NDArray[np.bool_]) -> list[slice]:
    """Neighbouring pictures of [n, K] with the same prompts, which are asked together."""
    edges = [0, *(i for i in range(1, len(there)) if (there[i] != there[i - 1]).any()), len(there)]
    return [slice(first, last) for first, last in pairwise(edges)]


def _bucketed(active: NDArray[np.intp], most: int) -> NDArray[np.intp]:
    """The numbers with the last one repeated up to 1, 2, 4, 8 ... of them, at most `most`: so many shapes ever come."""
    count = min(most, 1 << (len(active) - 1).bit_length())
    return np.concatenate([active, np.repeat(active[-1:], count - len(active))])


def _blank(shape: tuple[int, ...], device: Any) -> Any:
    if device is None:
        return np.full(shape, ABSENT, np.float32)
    import torch

    return torch.full(shape, ABSENT, device=device)
