"""What is left when a program dies: `python benchmarks/crashes.py --json FILE` (half an hour of one core).

1. Every crash point: each of the named steps of every writer that a run of a scenario comes by (`digseg_engine/crash_points.py`)
   is made its last, once by leaving at once and once by SIGKILL.
2. Random moments: SIGKILL at seeded moments of the runs of results, tiles, trainings and exports, until 200 have landed.
3. Several at once: eight processes want the same thing, and one of them makes it.

After every death: whatever has its final name is whole (a bundle with all hashes, a checkpoint or state that loads, a picture
that decodes, JSON that parses), the older one or the new one.
Then the same command once more, without any cleaning:
exit code 0, the same hashes as of a run that nobody disturbed, and nothing left of the dead.

Exports are of the smallest checkpoint of the tests, verified on few scenes, and traced once: tracing takes most of their time and
writes nothing; what is done with a traced graph, keeping it for the next run among it, is what an export does.

Runs are forked from one process that has imported everything, so that a death costs no start. FILE is written after every
scenario; with --resume, scenarios that it has of the same code are not run again. Exit code 1 when anything was wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "export"), str(ROOT / "tests"), str(ROOT / "tests" / "training")]

from crash_scenarios import NAMES, choose, results_whole, scenarios  # noqa: E402
from crash_trials import Trial, start  # noqa: E402

from digseg_engine.files import write_json  # noqa: E402

SHARES = {"segment": 35, "tiles": 25, "training": 25, "export": 15}  # of the kills at random moments


def together(room: Path, processes: int, rounds: int) -> dict[str, Any]:
    """Processes that want one verdict at the same time, in an empty cache: one measures, the others wait for its answer."""
    built, failed = [], 0
    for number in range(rounds):
        folder = room / f"together-{number}"
        folder.mkdir()
        gate, release = os.pipe()

        def work(folder: Path = folder, gate: int = gate, release: int = release) -> int:
            os.close(release)
            os.read(gate, 1)  # until all are there
            return choose(folder)

        children = [start(work) for _ in range(processes)]
        os.close(release)
        os.close(gate)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        built.append(codes.count(3))
        failed += sum(code not in (0, 3) for code in codes)
        results_whole(folder)
    counted = {str(number): count for number, count in Counter(built).items()}
    return {"processes": processes, "rounds": rounds, "builds_in_a_round": counted, "failed": failed}


def code_hash() -> str:
    """Of all that is run here, this program included."""
    digest = hashlib.sha256()
    for folder in ("digseg_engine", "export", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py" if folder != "benchmarks" else "crash*.py")):
            digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="scenarios, with commas")
    parser.add_argument("--kills", type=int, default=200, help="that land at random moments, over " + ", ".join(SHARES))
    parser.add_argument("--each", type=int, help="passages of every named step; without it all")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures")
    parser.add_argument("--resume", action="store_true", help="go on with what --json has of the same code")
    typed = parser.parse_args()
    typed.wanted = set(typed.only.split(",")) if typed.only else {*NAMES, "together"}
    if unknown := typed.wanted - {*NAMES, "together"}:
        raise SystemExit(f"no scenario {sorted(unknown)[0]!r}; expected some of {', '.join(NAMES)}, together")
    return typed


def begun(a: argparse.Namespace) -> dict[str, Any]:
    """The figures as far as they are known."""
    body: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/crashes.py", *sys.argv[1:]]),
        "code": code_hash(),
        "date": str(date.today()),
        "cores": os.cpu_count(),
        "seed": a.seed,
        "scenarios": {},
        "seconds": 0.0,
    }
    if a.resume and a.json and a.json.is_file():
        before = json.loads(a.json.read_text(encoding="utf-8"))
        if all(before.get(key) == body[key] for key in ("code", "seed")):
            return {**before, "command": body["command"]}
    return body


def kills(name: str, total: int, wanted: set[str]) -> int:
    """How many of the kills a scenario gets."""
    whole = sum(share for other, share in SHARES.items() if other in wanted)
    return -(-total * SHARES.get(name, 0) // whole) if whole else 0


def main() -> int:
    a = arguments()
    os.environ["OMP_NUM_THREADS"] = "1"
    if a.wanted & {"training", "checkpoint", "export"}:  # imported once, for all forks
        import digseg_export.publish  # noqa: F401
    from digseg_engine.runtime.backends import openvino_backend

    openvino_backend.VARIANTS = {}  # they compile for half a minute: the question here is who measures, not what

    room = Path(tempfile.mkdtemp(prefix="digseg-crashes-"))
    os.environ["DIGSEG_CACHE"] = str(room / "cache")
    body, began = begun(a), time.monotonic()
    before = body["seconds"]

    def keep() -> None:
        body["seconds"] = round(before + time.monotonic() - began, 1)
        if a.json:
            write_json(a.json, body)

    for scenario in scenarios(room, a.wanted - set(body["scenarios"])):
        if scenario.name not in a.wanted or scenario.name in body["scenarios"]:
            continue
        with scenario.quick():
            trial = Trial(scenario, room)
            print(f"{scenario.name}: {len(trial.points)} passages, {trial.seconds:.1f} s a run", flush=True)
            trial.points_one_by_one(a.each)
            trial.at_random(kills(scenario.name, a.kills, a.wanted), a.seed)
        body["scenarios"][scenario.name] = trial.figures()
        print(f"  {dict(trial.tally.deaths)}, {trial.tally.reruns} reruns, {len(trial.tally.wrong)} wrong", flush=True)
        keep()
    if "together" in a.wanted and "together" not in body:
        body["together"] = together(room, a.processes, a.rounds)
        print(f"together: {body['together']}", flush=True)
    keep()
    shutil.rmtree(room, ignore_errors=True)
    wrong = sum(len(each["wrong"]) for each in body["scenarios"].values())
    at_once = body.get("together", {"failed": 0, "builds_in_a_round": {"1": 1}})
    return int(bool(wrong or at_once["failed"] or set(at_once["builds_in_a_round"]) != {"1"}))


if __name__ == "__main__":
    raise SystemExit(main())
