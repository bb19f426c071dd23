"""One peer at one size in a process of its own: a question as JSON on a line of standard input, its times on standard output.

Run by `speed_peers.py` in the peer's environment: `python -m benchmarks.peers.worker NAME SIZE FOLDER BUNDLE THREADS`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peers.registry import PEERS
from digseg_engine.runtime.peak import forget_peak, peak_bytes  # needs the standard library alone

LONG = (
    0.5  # seconds: a shorter question is asked twice, so that it does not pay for what another peer left in the caches
)


def opened(name: str, size: int, folder: Path, bundle: Path, threads: int) -> Any:
    """The peer, ready to be asked."""
    peer = PEERS[name]
    if peer.model == "student":
        from benchmarks.peers.ours import Ours

        return Ours(bundle, peer.run, size, threads)
    if not peer.asks_again:
        from benchmarks.peers.yolo import Yolo

        return Yolo(peer.model, folder, size, threads)
    from benchmarks.peers import parts

    if peer.exported:
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        return parts.InOnnxRuntime(folder, size, about["vocabulary"], threads)
    from benchmarks.peers import models

    return parts.InTorch(models.build(peer.model, size), peer.run == "compile", threads)


def clock_of(threads: int) -> Callable[[], float]:
    """Processor time where one thread does all the work, for other work on the machine does not disturb it; else the wall's."""
    return time.process_time if threads == 1 else time.perf_counter


def answer(peer: Any, said: dict[str, Any], clock: Callable[[], float]) -> dict[str, Any]:
    """Milliseconds of one question, or the memory at the end."""
    if said["ask"] == "peak":
        return {"peak_bytes": peak_bytes()}
    ask = getattr(peer, said["ask"])

    def once() -> float:
        began = clock()
        ask(said["prompts"])
        return clock() - began

    seconds = once()
    if said["warm_up"] or seconds < LONG:
        seconds = once()
    return {"ms": 1000 * seconds}


def main() -> None:
    name, size, folder, bundle, threads = sys.argv[1:6]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print goes to standard error

    def say(body: dict[str, Any]) -> None:
        answers.write(json.dumps(body) + "\n")
        answers.flush()

    began = time.perf_counter()
    try:
        peer = opened(name, int(size), Path(folder), Path(bundle), int(threads))
        peer.first(1)
    except Exception as error:
        say({"failed": f"{type(error).__name__}: {error}"[:500]})
        return
    say({"detail": peer.detail, "load_s": time.perf_counter() - began})
    forget_peak()
    for line in sys.stdin:
        try:
            say(answer(peer, json.loads(line), clock_of(int(threads))))
        except Exception as error:
            say({"failed": f"{type(error).__name__}: {error}"[:500]})


if __name__ == "__main__":
    main()
