"""Process start to masks: the C program `segment` against `digseg segment`, same bundle, same picture, same run.

Runs take turns. The first start of each chooses its backend and keeps the choice in an empty cache folder; it is reported
on its own. Usage:
    python benchmarks/native_cold_start.py --program SEGMENT --bundle DIR [--runs 9] [--json FILE]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from digseg_engine.runtime.machine import processor

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = ("road", "building", "water")


def onnxruntime_library() -> Path:
    """The shared library inside the installed onnxruntime package."""
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        raise SystemExit("onnxruntime is not installed: pip install onnxruntime")
    return next(iter(sorted((Path(spec.origin).parent / "capi").glob("libonnxruntime.so*"))))


def seconds(command: list[str], environment: dict[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return time.perf_counter() - began


def measure(program: Path, bundle: Path, picture: Path, runs: int) -> dict[str, list[float]]:
    """Wall seconds of each run, native and Python in turns, the first start of each before the others."""
    taken: dict[str, list[float]] = {"native": [], "python": []}
    with tempfile.TemporaryDirectory() as room:
        environment = {
            **os.environ,
            "DIGSEG_ONNXRUNTIME": str(onnxruntime_library()),
            "DIGSEG_CACHE": f"{room}/cache",
        }
        python = [
            sys.executable,
            "-m",
            "digseg_engine",
            "segment",
            str(picture),
            "-b",
            str(bundle),
            "-o",
            f"{room}/out",
        ]
        python += [part for prompt in PROMPTS for part in ("-p", prompt)]
        native = [str(program), str(bundle), str(picture), f"{room}/m", *PROMPTS]
        for _ in range(runs + 1):
            for name, command in (("native", native), ("python", python)):
                taken[name].append(seconds(command, environment))
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=Path, required=True, help="the built examples/segment")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--picture", type=Path, default=ROOT / "examples" / "aerial.png")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--json", type=Path)
    typed = parser.parse_args()
    taken = measure(typed.program, typed.bundle, typed.picture, typed.runs)
    medians = {name: statistics.median(values[1:]) for name, values in taken.items()}
    report = {
        "what": "process start to masks, seconds, median",
        "machine": f"{processor()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("onnxruntime", "numpy", "pillow")},
        },
        "runs": typed.runs,
        "first start": {name: round(values[0], 4) for name, values in taken.items()},
        "median": {name: round(value, 4) for name, value in medians.items()},
        "ratio": round(medians["native"] / medians["python"], 4),
        "all": {name: [round(value, 4) for value in values[1:]] for name, values in taken.items()},
    }
    print(json.dumps(report, indent=2))
    if typed.json:
        typed.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
