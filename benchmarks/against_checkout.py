"""Milliseconds from a picture file to masks, beside an older checkout of this project in the same run.

    git worktree add ../older COMMIT     (and export its bundle there, where it ships none)
    python benchmarks/against_checkout.py ../older --older-bundle ../older/digseg-tiny-fp16

Each side is a process of its own with its own code and bundle; they take turns call by call, so that whatever else the machine
does meets them alike. A call reads the picture, encodes it, answers K prompts and makes label map and masks; nothing is written.
The older side runs what its `auto` chooses, this one every backend given.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from digseg_engine.files import write_json
from digseg_engine.model.folder import BUNDLED
from digseg_engine.runtime.machine import processor

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
PICTURE = ROOT / "examples" / "aerial.png"
WORKER = """
import inspect, sys, time
from digseg_engine import Engine
bundle, backend, picture, size = sys.argv[1:]
more = {"threads": 1} if "threads" in inspect.signature(Engine.load).parameters else {}
engine = Engine.load(bundle, backend, **more)
names = [f"{a} {b}" for a in ("red", "green", "blue", "grey", "large") for b in ("road", "house", "field", "lake")]
print(engine.backend.detail, flush=True)
asked = {"all_prompts": True} if "all_prompts" in inspect.signature(engine.segment).parameters else {}
for line in sys.stdin:
    began = time.perf_counter()
    engine.segment(picture, names[: int(line)], size=int(size), **asked)
    print(1000 * (time.perf_counter() - began), flush=True)
"""


class Side:
    """One checkout's engine in a process of its own."""

    def __init__(self, root: Path, bundle: Path, backend: str, size: int) -> None:
        path = os.pathsep.join(str(root / name) for name in ("", "export", "triton_kernels"))
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(bundle), backend, str(PICTURE), str(size)], cwd=root, text=True,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.detail = self._line()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            raise SystemExit(f"{self.process.args!r:.300} ended with {self.process.wait()}")
        return line

    def ask(self, prompts: int) -> float:
        """Milliseconds of one call."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{prompts}\n")
        self.process.stdin.flush()
        return float(self._line())


def measure(sides: dict[str, Side], counts: Sequence[int], runs: int) -> list[dict[str, Any]]:
    """Medians by number of prompts and side, in turns, after two calls that warm up."""
    rows = []
    for count in counts:
        taken: dict[str, list[float]] = {name: [] for name in sides}
        for run in range(runs + 2):
            for name, side in sides.items():
                milliseconds = side.ask(count)
                if run >= 2:
                    taken[name].append(milliseconds)
        older = statistics.median(taken["older"])
        rows += [{"prompts": count, "side": name, "ms": round(statistics.median(own), 2),
                  "share": round(statistics.median(own) / older, 3)} for name, own in taken.items()]  # fmt: skip
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("older", type=Path, help="the older checkout")
    parser.add_argument("--older-bundle", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, default=BUNDLED.with_name(f"{BUNDLED.name}-fp16"))
    parser.add_argument("--backends", nargs="+", default=["auto", "onnxruntime", "openvino-bf16"])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 20])
    parser.add_argument("--runs", type=int, default=21)
    parser.add_argument("--output", type=Path, default=RESULTS / "against-checkout.json")
    given = parser.parse_args(arguments)
    sides = {"older": Side(given.older.resolve(), given.older_bundle.resolve(), "auto", given.size)}
    sides |= {name: Side(ROOT, given.bundle.resolve(), name, given.size) for name in given.backends}
    rows = measure(sides, given.prompts, given.runs)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=given.older, capture_output=True, text=True
    ).stdout
    write_json(given.output, {
        "older": commit.strip(), "size": given.size, "threads": 1, "runs": given.runs, "rows": rows,
        "backends": {name: side.detail for name, side in sides.items()}, "load": os.getloadavg(),
        "processor": processor(), "date": str(date.today()),
    })  # fmt: skip
    for row in rows:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
