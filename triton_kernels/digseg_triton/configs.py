"""Which block sizes a kernel uses: a small committed table per architecture instead of tuning at the first call."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_TABLE = Path(__file__).with_name("configs.json")
_LIMITS = ("bytes", "width", "tokens")


@dataclass(frozen=True)
class Config:
    """Launch parameters of one kernel. `block`: rows or pixels per program; `chunk`, `columns`: see `constants.py`."""

    block: int
    warps: int
    stages: int
    chunk: int = 0
    columns: int = 0


@cache
def table() -> dict[str, Any]:
    """The parsed configs.json."""
    loaded: dict[str, Any] = json.loads(_TABLE.read_text())
    return loaded


def nearest(known: list[int], wanted: int) -> int:
    """The newest known architecture that is not newer than `wanted`; the oldest one if all are newer."""
    return max((arch for arch in known if arch <= wanted), default=min(known))


@cache
def choose(op: str, arch: int, **size: int) -> Config:
    """Parameters for `op` on `arch` (such as 87) and sizes `bytes`, `width`, `tokens`.

    Raises LookupError where no rule is large enough: such a call belongs to the twin.
    """
    rules = table()[op]
    key = str(arch)
    if key not in rules:
        key = str(nearest([int(name) for name in rules], arch))
    while isinstance(rules[key], str):  # an alias
        key = rules[key]
    for rule in rules[key]:
        if all(size.get(limit, 0) <= rule.get(limit, size.get(limit, 0)) for limit in _LIMITS):
            return Config(**{name: value for name, value in rule.items() if name not in _LIMITS})
    raise LookupError(f"{op}: no configuration for {size} on {arch}")
