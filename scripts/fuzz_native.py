"""Run the readers of the C library under libFuzzer with AddressSanitizer and UndefinedBehaviorSanitizer, one after the other.

    python scripts/fuzz_native.py --seconds 3600                   # an hour of one core for each reader
    python scripts/fuzz_native.py --seconds 60 --readers json,graph --json fuzz.json

Builds kernels/tests/fuzz with Clang (minutes the first time; kept in --build). Begins with the inputs in kernels/tests/fuzz/seeds
and found (what broke a reader before); what it finds new is left in --corpus, and what breaks a reader in --found. Exit code 1
when anything does: a crash, a sanitizer's report, a hang of ten seconds, more than 2 GiB, an exception that is not the library's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FUZZ = ROOT / "kernels" / "tests" / "fuzz"
READERS = ("json", "safetensors", "tokenizer", "picture", "graph", "manifest")
LONGEST = {"picture": 512}  # bytes of an input, where 8,192 would only be more pixels
LIMITS = ("-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1")


def clang() -> tuple[str, str] | None:
    """The C and C++ compilers, $CC and $CXX first; None where there is no Clang."""
    for suffix in ("", *(f"-{number}" for number in range(22, 13, -1))):
        pair = shutil.which(f"clang{suffix}"), shutil.which(f"clang++{suffix}")
        if pair[0] and pair[1]:
            return pair[0], pair[1]
    return None


def build(folder: Path) -> Path:
    """The program, built in `folder`. Raises SystemExit where it cannot be."""
    found = clang()
    if found is None:
        raise SystemExit("no Clang here; expected clang and clang++ on the path; install them and libclang-rt")
    options = (
        "-DCMAKE_BUILD_TYPE=RelWithDebInfo",
        f"-DCMAKE_C_COMPILER={found[0]}",
        f"-DCMAKE_CXX_COMPILER={found[1]}",
        "-DDIGSEG_SANITIZE=fuzzer-no-link,address,undefined",
        "-DDIGSEG_CUDA=OFF",
        "-DDIGSEG_EXAMPLES=OFF",
        "-DDIGSEG_FUZZ=ON",
    )
    for words in (
        ("cmake", "-S", str(ROOT / "kernels"), "-B", str(folder), *options),
        ("cmake", "--build", str(folder), "--target", "fuzz", "--parallel", "2"),
    ):
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(words)} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return folder / "tests" / "fuzz" / "fuzz"


def inputs(reader: str) -> list[Path]:
    """Committed inputs of a reader: seeds, and what broke it once."""
    return [path for kind in ("seeds", "found") for path in sorted((FUZZ / kind / reader).glob("*"))]


def run(program: Path, reader: str, seconds: int, seed: int, corpus: Path, found: Path, room: Path) -> dict[str, Any]:
    """One reader for so long: executions, coverage, and the files that broke it."""
    for folder in (corpus, found, room):
        folder.mkdir(parents=True, exist_ok=True)
    for path in inputs(reader):
        shutil.copyfile(path, corpus / path.name)
    words = [
        str(program),
        f"-max_total_time={seconds}",
        f"-seed={seed}",
        f"-max_len={LONGEST.get(reader, 8192)}",
        *LIMITS,
        f"-artifact_prefix={found}/",
        str(corpus),
    ]
    environment = {
        **os.environ,
        "DIGSEG_FUZZ_READER": reader,
        "DIGSEG_FUZZ_ROOM": str(room),
        "ASAN_OPTIONS": "detect_leaks=1:allocator_may_return_null=0",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    }
    began = time.monotonic()
    done = subprocess.run(words, capture_output=True, text=True, errors="replace", env=environment, check=False)
    said = done.stderr
    progress = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)/", said)
    numbers = {key: int(value) for key, value in re.findall(r"stat::(\w+):\s+(\d+)", said)}
    edges, features, kept = map(int, progress[-1]) if progress else (0, 0, 0)
    broke = sorted(path.name for path in found.iterdir())
    if done.returncode and not broke:
        broke = [f"exit code {done.returncode}: {said[-500:]}"]
    if done.returncode:
        print(said[-4000:], file=sys.stderr)
    return {
        "executions": numbers.get("number_of_executed_units", 0),
        "seconds": round(time.monotonic() - began, 1),
        "edges": edges,
        "features": features,
        "inputs_kept": kept,
        "peak_mib": numbers.get("peak_rss_mb", 0),
        "slowest_seconds": numbers.get("slowest_unit_time_sec", 0),
        "begun_with": len(inputs(reader)),
        "broke": broke,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="for each reader")
    parser.add_argument("--readers", default=",".join(READERS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--build", type=Path, default=ROOT / "kernels" / "build" / "fuzz")
    parser.add_argument("--corpus", type=Path, default=ROOT / "kernels" / "build" / "fuzz-corpus")
    parser.add_argument("--found", type=Path, default=ROOT / "kernels" / "build" / "fuzz-found")
    parser.add_argument(
        "--room", type=Path, default=ROOT / "kernels" / "build" / "fuzz-room", help="where files are written"
    )
    parser.add_argument("--json", type=Path, help="also write the figures")
    a = parser.parse_args()
    program = build(a.build)
    version = subprocess.run([clang()[0], "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[
        0
    ]  # type: ignore[index]
    body: dict[str, Any] = {
        "command": " ".join(["python", "scripts/fuzz_native.py", *sys.argv[1:]]),
        "date": str(date.today()),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "compiler": version,
        "seed": a.seed,
        "limits": list(LIMITS),
        "readers": {},
    }
    for reader in a.readers.split(","):
        if reader not in READERS:
            raise SystemExit(f"no reader {reader!r}; expected some of {', '.join(READERS)}")
        figures = run(program, reader, a.seconds, a.seed, a.corpus / reader, a.found / reader, a.room)
        body["readers"][reader] = figures
        print(
            f"{reader:12} {figures['executions']:9} executions, {figures['edges']} edges, {figures['seconds']} s, "
            f"{figures['peak_mib']} MiB, {len(figures['broke'])} that broke it",
            flush=True,
        )
        if a.json:
            a.json.write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
    return int(any(figures["broke"] for figures in body["readers"].values()))


if __name__ == "__main__":
    raise SystemExit(main())
