"""Memory, open files, threads and latency over many pictures: `python benchmarks/soak.py --json FILE [--native PROGRAM]`.

One engine of the shipped bundle on ONNX Runtime's CPU provider answers picture after picture, each of another size, at another
working size and with other prompts (of 1,000, more than are kept); the C library the same by `stress soak`
(kernels/tests/stress.cpp). Every hundredth of the way it is written down what is resident, open and running. Reported: the
slope of what is resident by picture (least squares, after the first tenth), how open files and threads changed, and the 99th
percentile of a call's seconds in the first and the last tenth. On a machine with other work the percentiles say more about
that work.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from digseg_engine import Engine  # noqa: E402
from digseg_engine.files import write_json  # noqa: E402
from digseg_engine.named import SHIPPED_BUNDLE  # noqa: E402
from digseg_engine.runtime.machine import device_key, library_versions  # noqa: E402


def now() -> tuple[int, int, int]:
    """(resident KiB, open files, threads) of this process."""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() >> 10
    return resident, len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


def in_python(count: int, seed: int) -> tuple[list[tuple[int, ...]], list[float]]:
    """Rows of (pictures, *now()), and seconds of every call."""
    engine = Engine.load(SHIPPED_BUNDLE, backend="onnxruntime", threads=1)
    draw, pixels = random.Random(seed), np.random.default_rng(seed).integers(0, 255, (96, 96, 3), np.uint8)
    rows, seconds = [], []
    for number in range(1, count + 1):
        prompts = list(dict.fromkeys(f"thing {draw.randrange(1000)}" for _ in range(draw.randint(1, 4))))
        picture = pixels[: draw.randint(16, 96), : draw.randint(16, 96)]
        began = time.perf_counter()
        engine.segment(picture, prompts, size=16 * draw.randint(2, 6))
        seconds.append(time.perf_counter() - began)
        if number % max(1, count // 100) == 0:
            rows.append((number, *now()))
    return rows, seconds


def in_c(program: Path, count: int, seed: int) -> tuple[list[tuple[int, ...]], list[float]]:
    words = [str(program), "soak", str(SHIPPED_BUNDLE), str(count), str(seed)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    body = json.loads(done.stdout)
    return [tuple(row) for row in body["rows"]], body["seconds"]


def figures(rows: Sequence[tuple[int, ...]], seconds: Sequence[float]) -> dict[str, Any]:
    """What the rows say after the first tenth."""
    late = np.array([row for row in rows if row[0] > len(seconds) / 10], dtype=np.float64)
    slope = float(np.polyfit(late[:, 0], late[:, 1], 1)[0]) * 1024
    tenth = max(1, len(seconds) // 10)
    first, last = (float(np.percentile(part, 99)) for part in (seconds[:tenth], seconds[-tenth:]))
    return {
        "pictures": len(seconds),
        "seconds": round(sum(seconds), 1),
        "bytes_a_picture": round(slope, 1),
        "resident_mib": {
            "after_a_tenth": round(late[0, 1] / 1024, 1),
            "most": round(float(late[:, 1].max()) / 1024, 1),
            "end": round(late[-1, 1] / 1024, 1),
        },
        "open_files": sorted({int(value) for value in late[:, 2]}),
        "threads": sorted({int(value) for value in late[:, 3]}),
        "p99_ms": {
            "first_tenth": round(1e3 * first, 2),
            "last_tenth": round(1e3 * last, 2),
            "ratio": round(last / first, 3),
        },
        "median_ms": {
            "first_tenth": round(1e3 * float(np.median(seconds[:tenth])), 2),
            "last_tenth": round(1e3 * float(np.median(seconds[-tenth:])), 2),
        },
        "rows": [list(row) for row in rows[:: max(1, len(rows) // 20)]],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="pictures through Python; 0 for none")
    parser.add_argument("--native", type=Path, help="the stress program (built with -DDIGSEG_STRESS=ON)")
    parser.add_argument("--native-count", type=int, default=100_000, help="pictures through C")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures")
    a = parser.parse_args()
    body: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/soak.py", *sys.argv[1:]]),
        "date": str(date.today()),
        "machine": device_key(),
        "versions": library_versions(),
        "load_before": os.getloadavg()[0],
    }
    for name, wanted, run in (
        ("python", a.count, lambda: in_python(a.count, a.seed)),
        ("c", a.native_count if a.native else 0, lambda: in_c(a.native, a.native_count, a.seed)),
    ):
        if wanted:
            body[name] = figures(*run())
            print(name, json.dumps({key: value for key, value in body[name].items() if key != "rows"}), flush=True)
    body["load_after"] = os.getloadavg()[0]
    if a.json:
        write_json(a.json, body)
    return int(
        any(
            body[name]["bytes_a_picture"] >= 1024 or len(body[name]["open_files"]) > 1
            for name in ("python", "c")
            if name in body
        )
    )


if __name__ == "__main__":
    raise SystemExit(main())
