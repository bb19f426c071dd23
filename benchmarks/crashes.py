"""What is left when a program dies: `python benchmarks/crashes.py --json FILE` (about an hour of one core, most of it exports).

1. Every crash point: each of the named steps of every writer that a run of a scenario comes by (`digseg_engine/crash_points.py`)
   is made its last, once by leaving at once and once by SIGKILL.
2. Random moments: SIGKILL at seeded moments of a run's life.
3. Several at once: eight processes want the same thing, and one of them makes it.

After every death: whatever has its final name is whole (a bundle with all hashes, a checkpoint or state that loads, a picture
that decodes, JSON that parses), the older one or the new one.
Then the same command once more, without any cleaning:
exit code 0, the same hashes as of a run that nobody disturbed, and nothing left of the dead.

Runs are forked from one process that has imported everything, so that a death costs no start. Exit code 1 when anything was
wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "export"), str(ROOT / "tests"), str(ROOT / "tests" / "training")]

from digseg_engine import crash_points  # noqa: E402
from digseg_engine.bundle import open_bundle  # noqa: E402
from digseg_engine.files import write_json  # noqa: E402
from digseg_engine.named import SHIPPED_BUNDLE  # noqa: E402

KILLED, LEFT = -signal.SIGKILL, crash_points.EXIT_CODE
LEFTOVERS = (".digseg-*", ".*.tmp-*", "writing-*")
NAMES = ("segment", "tiles", "training", "checkpoint", "verdict", "export")
UNSTEADY = ("manifest.json", "sbom.cdx.json")  # name the day and the seconds; the manifest's hashes of the others count


@dataclass(frozen=True)
class Scenario:
    """run: writes into a folder, on its own or over what is there. check: raises when what is there is not whole. same: the
    files by which two runs are compared. older: also tried over the output of a run before."""

    name: str
    run: Callable[[Path], object]
    check: Callable[[Path], object]
    same: Callable[[Path], dict[str, str]]
    older: bool = False


@dataclass
class Tally:
    deaths: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    reruns: int = 0


def forked(work: Callable[[], object], crash: str = "", end_after: float | None = None) -> int:
    """Exit code of `work` in a process of its own (negative: the signal that ended it). end_after: seconds until it is killed."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setsid()
            null = os.open(os.devnull, os.O_RDWR)
            said = os.open(f"/tmp/digseg-crashes-{os.getppid()}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            for stream, target in ((0, null), (1, null), (2, said)):
                os.dup2(target, stream)
            crash_points.arm(crash)
            result = work()
            code = result if isinstance(result, int) else 0
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(code)
    if end_after is not None:
        time.sleep(end_after)
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what it had started
    return code


def said() -> str:
    """The last words of the last forked run."""
    return Path(f"/tmp/digseg-crashes-{os.getpid()}.txt").read_text(errors="replace")[-300:]


def program(*words: object) -> None:
    """One of the project's commands, as its own entry runs it."""
    name, *rest = map(str, words)
    sys.argv = [name, *rest]
    if name == "digseg-export":
        from digseg_export.cli import main
    else:
        from digseg_engine.cli import main
    main()


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 by path of the files that must be the same after every way to them."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in UNSTEADY)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def results_whole(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.name.startswith(".digseg-"):
            continue  # a name that nobody takes for a result
        if path.suffix == ".png":
            Image.open(path).load()
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".npy":
            np.load(path)


def result_hashes(folder: Path) -> dict[str, str]:
    """Pictures and arrays; of a result's JSON all but its seconds."""
    found = {}
    for name, digest in hashes(folder).items():
        if name.endswith(".json"):
            body = json.loads((folder / name).read_text())
            body.pop("seconds", None)
            digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        found[name] = digest
    return found


def bundle_whole(folder: Path) -> None:
    if (folder / "bundle").exists():
        open_bundle(folder / "bundle")


def checkpoint_whole(folder: Path) -> None:
    from digseg_engine.model.pretrained import load_checkpoint

    if (folder / "checkpoint").exists():
        load_checkpoint(folder / "checkpoint")


def states_whole(folder: Path) -> None:
    from safetensors.numpy import load_file

    from digseg_engine.training.state import complete_states

    for state in complete_states(folder / "run" / "state"):
        body = json.loads((state / "state.json").read_text())
        for name, size in body["files"].items():
            assert (state / name).stat().st_size == size, name
            load_file(state / name)


def train(folder: Path) -> None:
    from small_stage import fit

    run = folder / "run"
    weights = fit(run, resume=(run / "config.json").exists(), save_every=2, steps=7)
    (folder / "weights.txt").write_text(str(weights.tolist()))


def trained_hashes(folder: Path) -> dict[str, str]:
    """Weights, averages and moments. The random numbers of Python and NumPy in a state are the process's."""
    kept = ("weights.txt", "model.safetensors", "average.safetensors", "optimizer.safetensors")
    return {name: digest for name, digest in hashes(folder).items() if name.endswith(kept)}


def choose(folder: Path) -> int:
    """Start on the shipped bundle with a cache of its own; 0 when the verdict was known, 3 when it was measured."""
    from digseg_engine import Engine
    from digseg_engine.runtime import choice

    plain, measured = choice.measure, []
    choice.measure = lambda *given, **named: measured.append(1) or plain(*given, **named)  # type: ignore[func-returns-value]
    os.environ["DIGSEG_CACHE"] = str(folder / "cache")
    Engine.load(SHIPPED_BUNDLE).segment(np.zeros((64, 64, 3), np.uint8), ["road"])
    return 3 if measured else 0


def scenarios(room: Path, wanted: set[str]) -> list[Scenario]:
    """All of them; `room` gets what they read."""
    rng = np.random.default_rng(0)
    (room / "in").mkdir()
    for name in "a":
        Image.fromarray(rng.integers(0, 255, (96, 128, 3), np.uint8)).save(room / "in" / f"{name}.png")
    if wanted & {"checkpoint", "export"} and forked(lambda: make_checkpoint(room / "pico")):
        raise SystemExit(f"no checkpoint to begin with: {said()}")
    segment = (
        "digseg",
        "segment",
        room / "in",
        "-p",
        "road",
        "-b",
        SHIPPED_BUNDLE,
        "--backend",
        "onnxruntime",
        "--size",
        "64",
    )
    return [
        Scenario("segment", lambda out: program(*segment, "-o", out), results_whole, result_hashes),
        Scenario(
            "tiles",
            lambda out: program(
                "digseg",
                "segment",
                room / "in" / "a.png",
                "-p",
                "road",
                "-b",
                SHIPPED_BUNDLE,
                "--backend",
                "onnxruntime",
                "--tile",
                "64",
                "-o",
                out,
            ),
            results_whole,
            result_hashes,
        ),
        Scenario("training", train, states_whole, trained_hashes),
        Scenario(
            "checkpoint",
            lambda out: copy_checkpoint(room / "pico", out / "checkpoint"),
            checkpoint_whole,
            hashes,
            older=True,
        ),
        Scenario("verdict", lambda out: choose(out) and None, results_whole, lambda out: {}),
        Scenario(
            "export",
            lambda out: program("digseg-export", room / "pico", "--precision", "fp32", "-o", out / "bundle"),
            bundle_whole,
            hashes,
        ),
    ]


def make_checkpoint(folder: Path) -> None:
    """The smallest checkpoint of the tests."""
    from conftest import nano_preset
    from nano_models import build_nano, pico_preset

    from digseg_engine.model.pretrained import save_checkpoint
    from digseg_engine.worlds.vocabulary import train_tokenizer

    tokenizer = train_tokenizer(704)
    preset = getattr(nano_preset, "__wrapped__", None) or nano_preset.__pytest_wrapped__.obj
    save_checkpoint(build_nano(pico_preset(preset()), tokenizer), tokenizer.to_str(), folder)


def copy_checkpoint(source: Path, target: Path) -> None:
    from digseg_engine.model.pretrained import load_checkpoint, save_checkpoint

    save_checkpoint(load_checkpoint(source), (source / "tokenizer" / "tokenizer.json").read_text(), target)


def left_of_the_dead(folder: Path) -> list[str]:
    return sorted({str(path.relative_to(folder)) for kind in LEFTOVERS for path in folder.rglob(kind)})


class Trial:
    """One scenario: what an undisturbed run leaves, and what is wrong after a disturbed one."""

    def __init__(self, scenario: Scenario, room: Path) -> None:
        self.scenario, self.room, self.tally = scenario, room, Tally()
        self.log = room / f"{scenario.name}.log"
        if forked(lambda: scenario.run(self.fresh("warm"))):  # what is remembered of a backend is remembered now
            raise SystemExit(f"{scenario.name} fails by itself: {said()}")
        whole, began = self.fresh("whole"), time.monotonic()
        code = forked(lambda: scenario.run(whole), f"log:{self.log}")
        self.seconds = time.monotonic() - began
        if code:
            raise SystemExit(f"{scenario.name} fails by itself with exit code {code}: {said()}")
        self.points = self.log.read_text().splitlines()
        self.wanted = scenario.same(whole)

    def fresh(self, name: str) -> Path:
        folder = self.room / f"{self.scenario.name}-{name}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def note(self, what: str) -> None:
        print(f"  WRONG: {what}", flush=True)
        self.tally.wrong.append(what)

    def checked(self, folder: Path, when: str) -> None:
        try:
            self.scenario.check(folder)
        except Exception as error:
            self.note(f"{self.scenario.name}, {when}: {type(error).__name__}: {error}")

    def again(self, folder: Path, when: str) -> None:
        """The same command once more: it succeeds, gives the same bytes, and tidies up."""
        self.tally.reruns += 1
        code = forked(lambda: self.scenario.run(folder))
        if code:
            self.note(f"{self.scenario.name}, again after {when}: exit code {code}: {said()}")
        elif self.scenario.same(folder) != self.wanted:
            self.note(f"{self.scenario.name}, again after {when}: other bytes")
        elif left := left_of_the_dead(folder):
            self.note(f"{self.scenario.name}, again after {when}: left {left[:3]}")

    def points_one_by_one(self, most: int | None = None) -> None:
        picked = range(1, len(self.points) + 1)
        if most is not None and len(picked) > most:
            picked = [1 + i * (len(self.points) - 1) // (most - 1) for i in range(most)]  # type: ignore[assignment]
        for over in (False, True) if self.scenario.older else (False,):
            older = self.fresh("older")
            if over and forked(lambda older=older: self.scenario.run(older)):
                raise SystemExit(said())
            for number in picked:
                for how, code in (("exit", LEFT), ("kill", KILLED)):
                    when = f"{how} at {number} ({self.points[number - 1]}){' over an older one' if over else ''}"
                    folder = self.fresh("trial")
                    if over:
                        shutil.copytree(older, folder, dirs_exist_ok=True)
                    got = forked(lambda folder=folder: self.scenario.run(folder), f"{number}:{how}")
                    if got != code:
                        self.note(f"{self.scenario.name}, {when}: exit code {got}, expected {code}: {said()}")
                    self.tally.deaths[how] += 1
                    self.checked(folder, when)
                    self.again(folder, when)

    def at_random(self, count: int, seed: int, rerun_every: int = 10) -> None:
        draw, folder = random.Random(f"{self.scenario.name}-{seed}"), self.fresh("random")
        for number in range(1, count + 1):
            moment = draw.uniform(0, self.seconds)
            code = forked(lambda folder=folder: self.scenario.run(folder), end_after=moment)
            self.tally.deaths["random" if code == KILLED else "had ended"] += 1
            self.checked(folder, f"kill {number} after {moment:.2f} s")
            if number % rerun_every == 0 or number == count:
                self.again(folder, f"{number} kills")
                folder = self.fresh("random")

    def figures(self) -> dict[str, Any]:
        return {
            "places": dict(Counter(self.points)),
            "passages": len(self.points),
            "seconds_of_a_run": round(self.seconds, 2),
            "deaths": dict(self.tally.deaths),
            "reruns": self.tally.reruns,
            "wrong": self.tally.wrong,
        }


def together(room: Path, processes: int, rounds: int) -> dict[str, Any]:
    """Processes that want one verdict at the same time, in an empty cache: one measures, the others wait for its answer."""
    built, failed = [], 0
    for number in range(rounds):
        folder = room / f"together-{number}"
        folder.mkdir()
        gate, release = os.pipe()
        children = []
        for _ in range(processes):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    os.close(release)
                    os.read(gate, 1)  # until all are there
                    code = choose(folder)
                except BaseException as error:
                    print(f"{type(error).__name__}: {error}", file=sys.stderr)
                finally:
                    os._exit(code)
            children.append(child)
        os.close(release)
        os.close(gate)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        built.append(codes.count(3))
        failed += sum(code not in (0, 3) for code in codes)
        results_whole(folder)
    return {"processes": processes, "rounds": rounds, "builds_in_a_round": dict(Counter(built)), "failed": failed}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="scenarios, with commas")
    parser.add_argument(
        "--kills", type=int, default=50, help="at random moments, of each of segment, tiles, training and export"
    )
    parser.add_argument("--most", type=int, help="crash points of a scenario; without it all")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures")
    a = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    wanted = set(a.only.split(",")) if a.only else {*NAMES, "together"}
    if unknown := wanted - {*NAMES, "together"}:
        raise SystemExit(f"no scenario {sorted(unknown)[0]!r}; expected some of {', '.join(NAMES)}, together")
    if wanted & {"training", "checkpoint", "export"}:  # imported once, for all forks
        import digseg_export.publish  # noqa: F401
    from digseg_engine.runtime.backends import openvino_backend

    openvino_backend.VARIANTS = {}  # they compile for half a minute: the question here is who measures, not what

    room = Path(tempfile.mkdtemp(prefix="digseg-crashes-"))
    os.environ["DIGSEG_CACHE"] = str(room / "cache")
    body: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/crashes.py", *sys.argv[1:]]),
        "date": str(date.today()),
        "cores": os.cpu_count(),
        "seed": a.seed,
        "scenarios": {},
    }
    began = time.monotonic()
    for scenario in scenarios(room, wanted):
        if scenario.name not in wanted:
            continue
        trial = Trial(scenario, room)
        print(f"{scenario.name}: {len(trial.points)} passages, {trial.seconds:.1f} s a run", flush=True)
        trial.points_one_by_one(a.most)
        if scenario.name in ("segment", "tiles", "training", "export"):
            trial.at_random(a.kills, a.seed)
        body["scenarios"][scenario.name] = trial.figures()
        print(f"  {dict(trial.tally.deaths)}, {trial.tally.reruns} reruns, {len(trial.tally.wrong)} wrong", flush=True)
    if "together" in wanted:
        body["together"] = together(room, a.processes, a.rounds)
        print(f"together: {body['together']}", flush=True)
    body["seconds"] = round(time.monotonic() - began, 1)
    shutil.rmtree(room, ignore_errors=True)
    if a.json:
        write_json(a.json, body)
    wrong = sum(len(each["wrong"]) for each in body["scenarios"].values())
    at_once = body.get("together", {"failed": 0, "builds_in_a_round": {1: 1}})
    return int(bool(wrong or at_once["failed"] or set(at_once["builds_in_a_round"]) != {1}))


if __name__ == "__main__":
    raise SystemExit(main())
