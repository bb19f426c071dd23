"""Pictures through the engines of several processes, on this machine or on the nodes of a Ray cluster (extra `[ray]`).

Ray's actors rather than Ray Data, whose actor pool repeats a whole block of rows when an actor dies, without end
(`max_task_retries=-1`): pictures of that block would be done twice, and one that ends its process would keep the pool busy for
ever. Here each actor has one picture at a time, so it is known which one an end concerns; it is begun again elsewhere,
at most `TRIES` times. What an actor does is `pictures.outcome`, as in one process; nothing but paths and lines crosses the wire.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from digseg_engine.console import note
from digseg_engine.errors import BackendError, DigsegError, MissingPackageError, OutputError, UsageError
from digseg_engine.extras import install_line, require
from digseg_engine.runtime import pictures
from digseg_engine.runtime.machine import cores
from digseg_engine.runtime.pictures import Outcome, Place, Todo, Work
from digseg_engine.words import counted

TRIES = 3  # of a picture whose actor ended: by then it is the picture's fault
STARTS = 5  # actors that may end before any of them has opened its engine
WAIT = 10.0  # seconds until it is said what is waited for, and until a shared file system shows a file
STORE = 80 << 20  # bytes of Ray's object store, which nothing of ours goes through: its least, with room
SAID = {  # of Ray's own settings, read when it is imported: no telemetry, whatever the user's shell says, and nothing on stdout,
    # where it tells of actors that ended; that is told here
    "RAY_USAGE_STATS_ENABLED": "0", "RAY_SCHEDULER_EVENTS": "0", "RAY_DEDUP_LOGS": "1", "RAY_DEDUP_LOGS_SKIP_REGEX": "(?s).*",
}  # fmt: skip
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # a cluster of its own listens on 127.0.0.1 alone


@dataclass(frozen=True)
class Opened:
    """What an actor's engine is: our version there, the backend with its detail, and what did not run; and the actor's node
    and process."""

    version: str
    backend: str
    detail: str
    fallbacks: tuple[str, ...]
    place: str


@dataclass
class Task:
    path: Place
    stem: str
    before: tuple[int, ...] | None = None  # what identified an older record when this began
    tries: int = 0


class Segmenter:
    """An actor: one engine, opened once. Errors that are the same for every picture are returned, not raised: Ray would wrap
    them."""

    def __init__(self, work: Work, prompts: list[str], pictures: int, folder: str) -> None:
        self.work, self.prompts, self.pictures, self.folder = work, prompts, pictures, folder
        self.engine: Any = None

    def open(self, backend: str | None) -> Opened | DigsegError:
        """backend: the one to open, None for what was asked for. The first actor chooses for all: backends differ in the last
        bits."""
        import ray

        from digseg_engine import __version__

        try:
            self._enter()
            work = self.work if backend is None else replace(self.work, backend=backend)
            self.engine = pictures.open_engine(replace(work, quiet=True, verbose=False), self.prompts, self.pictures)
        except DigsegError as error:
            return error
        place = f"{ray.get_runtime_context().get_node_id()[:8]}/{os.getpid()}"
        return Opened(__version__, self.engine.backend.name, self.engine.backend.detail, self.engine.fallbacks, place)

    def _enter(self) -> None:
        """Go to the folder that paths are relative to. Raises UsageError where this node has none, or no output folder."""
        where = "this node of the cluster; pictures, bundle and output must be on storage that all of its nodes share"
        try:
            os.chdir(self.folder)
        except OSError as error:
            raise UsageError(f"{self.folder} cannot be entered on {where}") from error
        if not self.work.output.is_dir():
            raise UsageError(f"the output folder {self.work.output} is not on {where}")

    def segment(self, task: Task) -> Outcome | DigsegError:
        record = self.work.output / f"{task.stem}.json"
        if task.tries and identity(record) != task.before and pictures.is_done(self.work, task.stem, self.prompts):
            return pictures.told_again(self.work, task.path, record)  # its actor ended between writing and saying so
        try:
            return pictures.outcome(self.engine, self.work, self.prompts, task.path, task.stem)
        except DigsegError as error:
            return error


def identity(path: Path) -> tuple[int, ...] | None:
    """What tells a file from the one that replaces it."""
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_ino, about.st_mtime_ns, about.st_size


@contextmanager
def workers(work: Work, prompts: list[str], count: int) -> Iterator[Callable[[Todo], Iterator[Outcome]]]:
    """What makes outcomes of pictures, in the order in which they are ready, for as long as it is open.

    Raises MissingPackageError without Ray, BackendError when the cluster cannot be reached or its actors do not live, and
    what opening the engine raises.
    """
    require("--ray", "ray")
    with joined(work.ray or "local") as ray:
        pool = Pool(ray, work, prompts, count)
        try:
            pool.begin()
            yield pool.outcomes
        finally:
            pool.end()


@contextmanager
def joined(address: str) -> Iterator[Any]:
    """The module `ray`, connected: to a cluster of its own on this machine's loopback, or to the one at an address."""
    local = address == "local"
    home = tempfile.mkdtemp(
        prefix="digseg-ray-", dir="/tmp" if os.path.isdir("/tmp") else None
    )  # sockets need short names
    started: dict[str, Any] = {
        "num_cpus": cores(),
        "include_dashboard": False,
        "object_store_memory": STORE,
        "_temp_dir": home,
    }
    os.environ.update(SAID | (LOOPBACK if local else {}))
    import ray as library

    ray: Any = library
    try:
        try:
            _check_answers(address)
            ray.init(address, log_to_driver=False, logging_level="ERROR", **(started if local else {}))
        except Exception as error:  # ConnectionError, RuntimeError, ValueError of an address, and what gRPC raises
            what = "Ray cannot be started here" if local else f"no Ray cluster answers at {address}"
            why = " ".join(str(error).split())[:300]
            raise BackendError(
                f"{what}: {why}; expected --ray local or --ray HOST:PORT of a cluster that runs"
            ) from error
        yield ray
    finally:
        ray.shutdown()
        shutil.rmtree(home, ignore_errors=True)


def _check_answers(address: str) -> None:
    """Raises OSError where nothing listens at HOST:PORT: Ray itself would try for more than a minute."""
    host, _, port = address.rpartition(":")
    if host and "/" not in address and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=WAIT).close()


class Pool:
    """The actors, what each of them is at, and what is left to do."""

    def __init__(self, ray: Any, work: Work, prompts: list[str], count: int) -> None:
        self.ray, self.work, self.asked = ray, work, (prompts, count)
        self.busy: dict[Any, tuple[Any, Task | None]] = {}  # what is waited for: an actor's start (None) or a picture
        self.todo: deque[Task] = deque()
        self.opened: dict[Any, Opened] = {}  # by actor
        self.starts, self.ended, self.shares = 0, 0, Counter[str]()
        self.backend: str | None = None
        have = ray.cluster_resources()
        self.cpus, self.gpus = work.actor_cpus, self._gpus(have.get("GPU", 0))
        self.size = min(work.actors or self._fitting(have), count)

    def _gpus(self, have: float) -> float:
        if self.work.actor_gpus is not None:
            return self.work.actor_gpus
        return 1.0 if have and (self.work.device or "cuda").partition(":")[0] != "cpu" else 0.0

    def _fitting(self, have: dict[str, float]) -> int:
        """As many actors as the cluster has room for, at least one, which then waits for it."""
        shares = [(have.get("CPU", 0), self.cpus), (have.get("GPU", 0), self.gpus)]
        return max(1, min(int(there / each + 1e-9) for there, each in shares if each))

    def begin(self) -> None:
        """Start the actors: one that chooses the backend, then the others."""
        self.work.output.mkdir(parents=True, exist_ok=True)
        self._start()
        while self.backend is None:
            for actor, _, opened in self._ready():
                self._take_in(actor, opened)
        for _ in range(self.size - 1):
            self._start()

    def _start(self) -> None:
        prompts, count = self.asked
        threads = self.work.threads or max(1, int(self.cpus))
        work = replace(self.work, threads=threads, output=self.work.output)
        kind = self.ray.remote(Segmenter).options(
            num_cpus=self.cpus, num_gpus=self.gpus, max_restarts=0, max_task_retries=0
        )
        actor = kind.remote(work, prompts, count, os.getcwd())
        self.starts += 1
        self.busy[actor.open.remote(self.backend)] = (actor, None)

    def _take_in(self, actor: Any, opened: Opened) -> None:
        from digseg_engine import __version__

        if opened.version != __version__:
            raise BackendError(f"a node of the cluster has digseg-engine {opened.version}, this machine {__version__}; install "
                               "the same release on all of them")  # fmt: skip
        if self.backend is None:
            pictures.say_engine(self.work, opened.backend, opened.detail, opened.fallbacks)
            if self.work.verbose:
                note("digseg", f"{counted(self.size, 'actor')} of {self.cpus:g} cores and {self.gpus:g} GPUs")
        self.backend, self.starts = opened.backend, 0
        self.opened[actor] = opened

    def outcomes(self, todo: Todo) -> Iterator[Outcome]:
        """One for each picture. A picture is given out when an actor is free: nothing queues but paths."""
        self.todo.extend(Task(path, stem) for path, stem in todo)
        for actor in list(self.opened):
            self._give(actor)
        while self.todo or any(task for _, task in self.busy.values()):
            for actor, task, got in self._ready():
                if task is None:
                    self._take_in(actor, got)
                elif actor is not None:
                    self._check_seen(got)
                    self.shares[self.opened[actor].place] += 1
                    yield got
                else:
                    yield got
                if actor is not None:
                    self._give(actor)
        if self.work.verbose:
            note(
                "digseg",
                "pictures by node and process: " + ", ".join(f"{k} {n}" for k, n in sorted(self.shares.items())),
            )

    def _give(self, actor: Any) -> None:
        if not self.todo:
            return
        task = self.todo.popleft()
        if not task.tries:
            task.before = identity(self.work.output / f"{task.stem}.json")
        self.busy[actor.segment.remote(task)] = (actor, task)

    def _ready(self) -> Iterator[tuple[Any, Task | None, Any]]:
        """(actor, its picture, what came back) of the next that is ready; no actor for a picture that is given up."""
        ready, _ = self.ray.wait(list(self.busy), num_returns=1, timeout=WAIT)
        if not ready and not self.opened and not self.work.quiet:
            note(
                "digseg",
                f"waiting for a free share of the cluster ({self.cpus:g} cores, {self.gpus:g} GPUs) or for the engine",
            )
        for reference in ready:
            actor, task = self.busy.pop(reference)
            try:
                got = self.ray.get(reference)
            except self.ray.exceptions.RayTaskError as error:  # an exception that is none of ours: nothing was done yet
                raise self._broken(error) from error
            except self.ray.exceptions.RayError as error:
                yield from self._replaced(actor, task, error)
                continue
            if isinstance(got, DigsegError):
                raise got
            yield actor, task, got

    def _broken(self, error: Exception) -> DigsegError:
        cause = getattr(error, "cause", None) or error
        if isinstance(cause, ModuleNotFoundError):
            return MissingPackageError(f"a node of the cluster lacks {cause.name}; run there: {install_line('ray')}")
        return BackendError(f"an actor failed: {' '.join(str(cause).split())[:300]}; Ray's logs on its node say more")

    def _replaced(self, actor: Any, task: Task | None, error: Exception) -> Iterator[tuple[None, Task, Outcome]]:
        """Another actor in place of one that ended; its picture is begun again, or given up."""
        with suppress(Exception):
            self.ray.kill(actor)  # one that cannot be reached must not write any more
        self.opened.pop(actor, None)
        self.ended += 1
        why = " ".join(str(error).split())[:200]
        if task is None and self.starts >= STARTS:
            raise BackendError(f"{counted(self.starts, 'actor')} ended while opening the engine: {why}; is there memory for "
                               "so many? try --actors 1")  # fmt: skip
        self._start()
        if task is None:
            return
        task.tries += 1
        if task.tries < TRIES:
            self.todo.append(task)  # last: one that ends every process meanwhile keeps no other waiting
            for idle in self.opened.keys() - {actor for actor, _ in self.busy.values()}:
                self._give(idle)
            return
        reason = f"{task.path}: the process that worked on it ended, {TRIES} times: out of memory? try it alone"
        yield None, task, Outcome(str(task.path), code=1, message=reason)

    def _check_seen(self, outcome: Outcome) -> None:
        """Raises OutputError for files that were written where this machine does not see them."""
        deadline = time.monotonic() + WAIT
        for file in outcome.files[:1]:
            while not file.exists():
                if time.monotonic() > deadline:
                    raise OutputError(f"{file} was written on a node of the cluster and is not here; the output folder must be "
                                      "on storage that all nodes share")  # fmt: skip
                time.sleep(0.1)

    def end(self) -> None:
        for actor in [*self.opened, *(actor for actor, _ in self.busy.values())]:
            with suppress(Exception):
                self.ray.kill(actor)
