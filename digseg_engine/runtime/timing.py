"""How long calls take: repeated, in turns, and what is said of them. The choice of a backend, `digseg bench` and the scripts in
`benchmarks/` all measure with this."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np


def repeated(
    call: Callable[[], object], runs: int, warm_up: int, seconds: float = float("inf"),
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:  # fmt: skip
    """Seconds of up to `runs` calls after `warm_up` ones; at least one, and no further ones once `seconds` have gone by."""
    taken: list[float] = []
    began = clock()
    for i in range(warm_up + runs):
        start = clock()
        call()
        if i >= warm_up:
            taken.append(clock() - start)
        if taken and clock() - began > seconds:
            break
    return taken


def in_turns(
    calls: Mapping[str, Callable[[], object]], runs: int, warm_up: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:  # fmt: skip
    """Seconds of `runs` calls each; the calls take turns, so that a busy moment hits all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(warm_up + runs):
        for name, call in calls.items():
            began = clock()
            call()
            if i >= warm_up:
                seconds[name].append(clock() - began)
    return seconds


def keeping(ask: Callable[[], Any], kept: list[dict[str, float]]) -> Callable[[], Any]:
    """`ask`, with the seconds of every step of its answer kept too: of all pictures together where it answers several."""

    def asked() -> Any:
        answer = ask()
        parts = answer if isinstance(answer, list) else [answer]
        kept.append({step: seconds * len(parts) for step, seconds in parts[0].timings.items()})
        return answer

    return asked


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile."""
    median, late = np.percentile(seconds, [50, 95])
    return {"median_ms": 1000 * float(median), "p95_ms": 1000 * float(late)}
