"""Folded bundles at run time: names instead of prompts, and what their one graph answers.

A bundle with logits goes the road of every other; of one with the label map alone, masks are where the map shows a name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from digseg_engine.contract import ABSENT, LABEL_MAP, LOGITS, PRESENCE_LOGITS
from digseg_engine.errors import UsageError
from digseg_engine.vocabulary import Vocabulary

if TYPE_CHECKING:
    from digseg_engine.images import Frame
    from digseg_engine.runtime.chunks import ChunkedRunner, Noted, Stretch

GOLDEN_NAMES = 16  # whose logits a folded bundle's golden sample holds
Labels = NDArray[Any]
NO_LOGITS = "this bundle was exported with --labels-only and answers its label map alone; export it without for {}"


@dataclass(frozen=True)
class Chosen:
    """Names of a vocabulary that are asked for, by their numbers, in place of folded text."""

    numbers: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.numbers)


class NameList:
    """Stands where an open bundle has its prompt cache: names are looked up, and there is nothing to encode."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary

    def fold(self, names: Sequence[str]) -> Chosen:
        """Raises InputError for a name that is not in the vocabulary."""
        return Chosen(tuple(self.vocabulary.numbers(names)))

    def one(self, name: str) -> Chosen:
        """As `fold`, of one name."""
        return self.fold([name])

    def check_owner(self, names: Sequence[str]) -> None:
        """Names belong to whoever knows them."""


def gated(logits: Any, presence: Any, threshold: float | None) -> Any:
    """Logits [B, K, h, w] as the graph answers them: ABSENT where presence [B, K] is under the threshold."""
    if presence is None or threshold is None:
        return logits
    return np.where((presence < threshold)[:, :, None, None], np.float32(ABSENT), logits)


def answer_names(runner: ChunkedRunner, about: Stretch, chosen: Chosen) -> Noted[tuple[Any, Any]]:
    """(logits [n, K, h', w'], presence [n, K] or None) of the chosen names about n pictures. Raises UsageError for a bundle
    that answers its label map alone."""
    found, notes = runner.labels(about, (LOGITS.name, PRESENCE_LOGITS.name))
    if LOGITS.name not in found:
        raise UsageError(NO_LOGITS.format("logits, confidence and tiles"))
    numbers = list(chosen.numbers)
    presence = found.get(PRESENCE_LOGITS.name)
    return (found[LOGITS.name][:, numbers], None if presence is None else presence[:, numbers]), notes


def answer_map(runner: ChunkedRunner, about: Stretch, chosen: Chosen) -> Noted[tuple[Labels, Any]]:
    """(label map [n, H, W] at the working size, presence [n, K] or None) of the chosen names about n pictures."""
    found, notes = runner.labels(about, (LABEL_MAP.name, PRESENCE_LOGITS.name))
    presence = found.get(PRESENCE_LOGITS.name)
    chosen_presence = None if presence is None else presence[:, list(chosen.numbers)]
    return (renumbered(found[LABEL_MAP.name], chosen, runner.names), chosen_presence), notes


def renumbered(label_map: Labels, chosen: Chosen, names: int) -> NDArray[np.int32]:
    """Labels of all names -> 1 + the place among the chosen ones; those that were not asked for show nothing."""
    places = np.zeros(names + 1, np.int32)
    for place, number in reversed(list(enumerate(chosen.numbers))):  # of a name that is asked twice, the first
        places[number + 1] = place + 1
    return places[label_map]


def unfit_labels(label_map: Labels, frame: Frame, shape: tuple[int, int] | None = None) -> Labels:
    """A map [H, W] of the model's pixels -> `shape` (default: the picture's own), padding cut off: labels cannot be mixed, so
    every pixel takes that of the nearest."""
    height, width = shape or frame.original
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip((height, width), frame.content, strict=True)
    )
    return label_map[np.ix_(rows, columns)]
