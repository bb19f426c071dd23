"""How much of a training comes from which data: "mydata", "mydata=0.5", "scenes:objects=0.3". Torch-free."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from digseg_engine.errors import UsageError

Data = str | Sequence[str]  # one description of data, or several that are mixed


@dataclass(frozen=True)
class Share:
    """Data and their weight beside others: a batch comes from them with the odds weight / (sum of weights)."""

    data: str
    weight: float = 1.0


def parse_shares(data: Data) -> tuple[Share, ...]:
    """Descriptions of data with their weights. Raises UsageError for a weight that is no number above 0, and data given
    twice."""
    shares = tuple(_share(text) for text in ([data] if isinstance(data, str) else data))
    if not shares:
        raise UsageError("no data given; expected scenes, scenes:DOMAIN,... or a folder of labelled pictures")
    names = [share.data for share in shares]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UsageError(f"--data {twice[0]} is given twice; give it once, with a weight: --data {twice[0]}=2")
    return shares


def scored_shares(data: Data) -> tuple[Share, ...]:
    """The parts of a mixture that figures are about: painted scenes once, whatever sizes they were painted at for training."""
    parts = [replace(share, data=_unsized(share.data)) for share in parse_shares(data)]
    return tuple({part.data: part for part in reversed(parts)}.values())[::-1]


def short_names(shares: Sequence[Share]) -> list[str]:
    """What the parts are called in figures: the last part of a path, or all of it where two end alike."""
    ends = [Path(share.data).resolve().name for share in shares]
    return [end if ends.count(end) == 1 else share.data for share, end in zip(shares, ends)]


def _unsized(data: str) -> str:
    name = data.partition("@")[0]
    return name if name == "scenes" or name.startswith("scenes:") else data


def _share(text: str) -> Share:
    data, equals, weight = text.rpartition("=")
    if not equals or Path(text).exists():  # a folder may have an = in its name
        return Share(text)
    try:
        number = float(weight)
    except ValueError:
        number = 0.0
    if not (number > 0 and math.isfinite(number)):
        raise UsageError(f"--data {text}: the weight after = must be a number above 0, got {weight!r}; for example --data "
                         f"{data}=0.5")  # fmt: skip
    return Share(data, number)
