"""Plants known errors one by one on a copy of the project and shows which quick test fails. All of them should be caught.

Usage: python scripts/mutants.py [--only WORD] [--workers 2] [--json FILE] [--floor 0.95]
The errors stand in scripts/mutants.toml: file, the line as it is, the line with the error, the tests that must notice.
A mutant whose old line is not found exactly once is an error of the list. Exit code 1 under the floor.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Queue

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / "scripts" / "mutants.toml"
PATIENCE = 1800 * float(os.environ.get("DIGSEG_TEST_PATIENCE", "1"))  # seconds: an error may make a test hang


@dataclass(frozen=True)
class Mutant:
    """One deliberate error: `old` stands exactly once in `file`; `tests` are pytest's arguments."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """caught: a test failed, as it should. said: pytest's line about it."""

    name: str
    area: str
    caught: bool
    seconds: float
    said: str


def read_list(path: Path = LIST) -> list[Mutant]:
    """Raises SystemExit naming the entry whose old line is not there exactly once."""
    mutants = [
        Mutant(**{**entry, "tests": tuple(entry["tests"])}) for entry in tomllib.loads(path.read_text())["mutant"]
    ]
    names = [mutant.name for mutant in mutants]
    for mutant in mutants:
        found = (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.old)
        if found != 1 or mutant.old == mutant.new or names.count(mutant.name) != 1:
            raise SystemExit(
                f"{path.name}: {mutant.name!r}: the old text stands {found} times in {mutant.file}, expected once"
            )
    return mutants


def copy_project(folder: Path) -> Path:
    """The files that git knows, as they are now, in `folder`."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def run_tests(copy: Path, tests: Sequence[str]) -> tuple[int, str]:
    """pytest's exit code and its last telling line."""
    paths = [str(copy), str(copy / "export"), str(copy / "triton_kernels")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--no-header", *tests]
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        return 1, "no end"
    said = done.stdout.strip().splitlines() or [done.stderr[-200:]]
    failures = [line for line in said if line.startswith(("FAILED", "ERROR"))]
    return done.returncode, (failures[0] if failures else said[-1])[:200]


def plant(mutant: Mutant, copies: Queue[Path]) -> Outcome:
    """Run the mutant's tests with the error in place, and put the file back."""
    copy, began = copies.get(), time.monotonic()
    path = copy / mutant.file
    right = path.read_text(encoding="utf-8")
    try:
        path.write_text(right.replace(mutant.old, mutant.new), encoding="utf-8")
        code, said = run_tests(copy, mutant.tests)
    finally:
        path.write_text(right, encoding="utf-8")
        copies.put(copy)
    outcome = Outcome(mutant.name, mutant.file, code == 1, round(time.monotonic() - began, 1), said)
    print(f"{'caught  ' if outcome.caught else 'SURVIVED'} {outcome.seconds:6.1f} s  {mutant.name}: {said}", flush=True)
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="mutants whose name or file has this word")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the outcomes")
    parser.add_argument("--floor", type=float, default=0.95, help="smallest share that must be caught")
    parser.add_argument("--no-control", action="store_true", help="do not run the tests without an error first")
    a = parser.parse_args()
    mutants = [mutant for mutant in read_list() if a.only in f"{mutant.name} {mutant.file}"]
    if not mutants:
        raise SystemExit(f"no mutant has {a.only!r} in its name or file")
    with tempfile.TemporaryDirectory() as room:
        copies: Queue[Path] = Queue()
        for number in range(a.workers):
            copies.put(copy_project(Path(room) / str(number)))
        if not a.no_control:
            first = copies.get()
            code, said = run_tests(first, list(dict.fromkeys(test for mutant in mutants for test in mutant.tests)))
            copies.put(first)
            print(f"without an error: {said}", flush=True)
            if code:
                raise SystemExit("the tests fail without any planted error; mend that first")
        with ThreadPoolExecutor(a.workers) as workers:
            outcomes = list(workers.map(lambda mutant: plant(mutant, copies), mutants))
    caught = sum(outcome.caught for outcome in outcomes)
    print(f"{caught} of {len(outcomes)} errors caught ({100 * caught / len(outcomes):.1f} %)")
    if a.json:
        body = {"caught": caught, "planted": len(outcomes), "outcomes": [asdict(outcome) for outcome in outcomes]}
        a.json.write_text(json.dumps(body, indent=2) + "\n")
    return 0 if caught >= a.floor * len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
