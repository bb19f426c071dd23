"""`digseg bench`: every backend at every size, batch and number of prompts, stage by stage and end to end.

Each backend is verified as for use and measured in processes of its own (`bench_worker.py`). What does not fit, or ends its
process, is a row with the reason.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from itertools import product
from pathlib import Path
from typing import Any

from digseg_engine.errors import BackendError, UsageError
from digseg_engine.runtime.backends import kinds
from digseg_engine.runtime.choice import Task, look
from digseg_engine.runtime.machine import cores, device_key, library_versions
from digseg_engine.runtime.source import Source
from digseg_engine.runtime.timing import milliseconds
from digseg_engine.words import did_you_mean

FORMAT = "digseg.bench/1"
SECONDS = 10.0  # for one kind of question at one shape; at least one run
STARTS = 3  # after the first one


@dataclass(frozen=True)
class Plan:
    """What is measured. load: the arguments of Engine.load but for the backend."""

    load: dict[str, Any]
    sizes: tuple[int, ...]
    prompts: tuple[int, ...]
    batches: tuple[int, ...]
    runs: int = 7
    seconds: float = SECONDS

    @property
    def tasks(self) -> list[Task]:
        """Every shape, smallest first."""
        return [Task(*shape) for shape in product(sorted(self.sizes), sorted(self.batches), sorted(self.prompts))]

    def job(self, backend: str, tasks: Iterable[Task] = (), start: bool = False) -> dict[str, Any]:
        """What a process is told."""
        load = {name: str(value) if isinstance(value, Path) else value for name, value in self.load.items()}
        return {"load": {**load, "backend": backend}, "tasks": [asdict(task) for task in tasks], "start": start,
                "runs": self.runs, "seconds": self.seconds}  # fmt: skip


@dataclass
class Measured:
    """One backend: what it runs, or why it does not; seconds to its first mask, in a fresh process; a row for every shape."""

    backend: str
    detail: str = ""
    reason: str = ""
    load_s: float | None = None
    startup: dict[str, Any] | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)


def wanted(text: str, source: Source) -> dict[str, str]:
    """Names, or `all` -> every backend asked about, and why it cannot run here ("" where it can).

    Raises UsageError for a name that is none, BackendError when none of them can run.
    """
    known = kinds()
    names = list(known) if text == "all" else list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in known:
            raise UsageError(f"unknown backend {name!r}{did_you_mean(name, known)}; expected all, or some of "
                             f"{', '.join(known)}, with commas between")  # fmt: skip
    found = {}
    for name in names:
        seen = look(known[name], source)
        needless = not seen.install or seen.install in seen.reason
        found[name] = "" if seen.usable else seen.reason if needless else f"{seen.reason}; {seen.install}"
    if all(found.values()):
        name, why = next(iter(found.items()))
        raise BackendError(f"none of these backends can run here ({name}: {why}); see `digseg doctor`")
    return found


def measure_backend(name: str, plan: Plan, done: Callable[[], None]) -> Measured:
    """Start it, then ask it at every shape. done: called after every part (`parts` of them)."""
    found = Measured(name)
    try:
        found.startup = _starts(name, plan)
    except BackendError as error:
        found.reason = str(error)
        return found
    done()
    left = plan.tasks
    while left and not found.reason:
        ended, answered = "", 0
        for answer in _answers(plan.job(name, left)):
            if "ended" in answer or "failed" in answer:
                ended = answer.get("failed") or answer["ended"]
            elif "detail" in answer:
                found.detail, found.load_s = answer["detail"], answer["load_s"]
            else:
                found.rows.append(answer)
                answered += 1
                done()
        left = left[answered:]
        ended = ended or ("its process ended before it had answered" if left else "")
        if ended and not found.detail:
            found.reason = ended
        elif ended and left:  # the shape that it was at, and on with the next in another process
            found.rows.append({**asdict(left[0]), "reason": ended})
            left = left[1:]
            done()
    return found


def parts(plan: Plan) -> int:
    """How often `measure_backend` says that a part is done."""
    return 1 + len(plan.tasks)


def _starts(name: str, plan: Plan) -> dict[str, Any]:
    """Seconds from process start to the first masks: with an empty cache, and later with what the first start left there."""
    with tempfile.TemporaryDirectory() as room:
        environment = {**os.environ, "DIGSEG_CACHE": room}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode
        seconds = []
        for _ in range(1 + STARTS):
            began = time.perf_counter()
            for answer in _answers(plan.job(name, start=True), environment):
                if why := answer.get("failed") or answer.get("ended"):
                    raise BackendError(why)
                seconds.append(time.perf_counter() - began)  # its masks; how it ends is not counted
    return {"first_ms": 1000 * seconds[0], "later": milliseconds(seconds[1:])}


def _answers(job: dict[str, Any], environment: dict[str, str] | None = None) -> Iterator[dict[str, Any]]:
    """What a process says, line by line; last of all, where it did not end well, that it `ended`."""
    command = [sys.executable, "-m", "digseg_engine.runtime.bench_worker"]
    with tempfile.TemporaryFile() as said, subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, encoding="utf-8", env=environment
    ) as process:  # fmt: skip
        try:
            with process.stdin as told:  # type: ignore[union-attr]
                told.write(json.dumps(job))
            for line in process.stdout:  # type: ignore[union-attr]
                yield json.loads(line)
            if code := process.wait():
                said.seek(0)
                last = said.read().decode("utf-8", "replace").strip().splitlines()
                how = f"signal {-code}, as when memory runs out" if code < 0 else f"exit code {code}"
                yield {"ended": f"its process ended by itself ({how})" + (f": {last[-1]}" if last else "")}
        finally:
            if process.poll() is None:
                process.kill()


def report(plan: Plan, source: Source, measured: list[Measured], command: list[str], note: str = "") -> dict[str, Any]:
    """All of it as JSON, with everything that the figures depend on."""
    name = source.bundle.folder.name if source.bundle is not None else source.need_checkpoint("digseg bench").name
    return {
        "format": FORMAT,
        "command": shlex.join(command),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "note": note,
        "machine": {**device_key(), "system": platform.system(), "python": platform.python_version(),
                    "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None},
        "versions": library_versions(),
        "model": {"name": name, "sha256": source.digest},
        "threads": source.threads or cores(),
        "runs": plan.runs,
        "backends": [asdict(one) for one in measured],
    }  # fmt: skip
