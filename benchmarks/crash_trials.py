"""Runs that are made to die, and what is looked at afterwards (see `crashes.py`)."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from digseg_engine import crash_points

KILLED, LEFT = -signal.SIGKILL, crash_points.EXIT_CODE
LEFTOVERS = (".digseg-*", ".*.tmp-*", "writing-*")
LAST_WORDS = "/tmp/digseg-crashes-{}.txt"
TRIES = 8  # runs for every kill that is to land


@dataclass(frozen=True)
class Scenario:
    """run: writes into a folder, on its own or over what is there. check: raises when what is there is not whole. same: the
    files by which two runs are compared. older: also tried over the output of a run before. quick: in which all its runs are."""

    name: str
    run: Callable[[Path], object]
    check: Callable[[Path], object]
    same: Callable[[Path], dict[str, str]]
    older: bool = False
    quick: Callable[[], AbstractContextManager[None]] = nullcontext


@dataclass
class Tally:
    deaths: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    reruns: int = 0


def start(work: Callable[[], object], crash: str = "") -> int:
    """`work` in a process of its own, whose exit code is what it returns where that is a number; the process's number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        said = os.open(LAST_WORDS.format(os.getppid()), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
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


def forked(work: Callable[[], object], crash: str = "", end_after: float | None = None) -> int:
    """Exit code of `work` in a process of its own (negative: the signal that ended it). end_after: seconds until it is killed."""
    child = start(work, crash)
    if end_after is not None:
        time.sleep(end_after)
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what it had started
    return code


def said() -> str:
    """The last words of the last forked run."""
    return Path(LAST_WORDS.format(os.getpid())).read_text(errors="replace")[-300:]


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
        self.ended(folder, when, forked(lambda: self.scenario.run(folder)))

    def ended(self, folder: Path, when: str, code: int) -> None:
        """What a run left that nobody disturbed."""
        self.tally.reruns += 1
        if code:
            self.note(f"{self.scenario.name}, again after {when}: exit code {code}: {said()}")
        elif self.scenario.same(folder) != self.wanted:
            self.note(f"{self.scenario.name}, again after {when}: other bytes")
        elif left := left_of_the_dead(folder):
            self.note(f"{self.scenario.name}, again after {when}: left {left[:3]}")

    def points_one_by_one(self, each: int | None = None) -> None:
        """Every passage of every named step, or so many of each name, the first and the last among them."""
        picked = sorted(number for name in dict.fromkeys(self.points) for number in self.passages(name, each))
        for over in (False, True) if self.scenario.older else (False,):
            older = self.fresh("older")
            if over and forked(lambda older=older: self.scenario.run(older)):
                raise SystemExit(said())
            for number in picked:
                for how in ("exit", "kill"):
                    self.one_point(number, how, older if over else None)

    def passages(self, name: str, most: int | None) -> list[int]:
        found = [number for number, passed in enumerate(self.points, 1) if passed == name]
        if most is None or len(found) <= most:
            return found
        return found[:1] if most == 1 else [found[i * (len(found) - 1) // (most - 1)] for i in range(most)]

    def one_point(self, number: int, how: str, older: Path | None) -> None:
        """A run that ends at its step `number`, and one after it."""
        when = f"{how} at {number} ({self.points[number - 1]}){' over an older one' if older else ''}"
        folder, code = self.fresh("trial"), LEFT if how == "exit" else KILLED
        if older:
            shutil.copytree(older, folder, dirs_exist_ok=True)
        got = forked(lambda: self.scenario.run(folder), f"{number}:{how}")
        if got != code:
            self.note(f"{self.scenario.name}, {when}: exit code {got}, expected {code}: {said()}")
        self.tally.deaths[how] += 1
        self.checked(folder, when)
        self.again(folder, when)

    def at_random(self, count: int, seed: int, rerun_every: int = 10) -> None:
        """So many kills that land. A run that ends before its kill is one of the reruns, as is every tenth after it landed."""
        draw, folder = random.Random(f"{self.scenario.name}-{seed}"), self.fresh("random")
        landed, tried = 0, 0
        while landed < count and tried < TRIES * count:
            tried += 1
            code = forked(lambda folder=folder: self.scenario.run(folder), end_after=draw.uniform(0, self.seconds))
            landed += code == KILLED
            self.tally.deaths["random" if code == KILLED else "had ended"] += 1
            when = f"{landed} kills"
            self.checked(folder, when)
            if code != KILLED:
                self.ended(folder, when, code)
            elif landed % rerun_every == 0 or landed == count:
                self.again(folder, when)
            else:
                continue
            folder = self.fresh("random")
        if landed < count:
            self.note(f"{self.scenario.name}: {landed} of {count} kills landed")

    def figures(self) -> dict[str, Any]:
        return {
            "places": dict(Counter(self.points)),
            "passages": len(self.points),
            "seconds_of_a_run": round(self.seconds, 2),
            "deaths": dict(self.tally.deaths),
            "reruns": self.tally.reruns,
            "wrong": self.tally.wrong,
        }
