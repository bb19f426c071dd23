"""Progress and seconds of the steps of an export, and how they are shown."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

from digseg_engine.crash_points import reached

Progress = Callable[[str], None]
STILL = 20.0  # seconds after which a step that goes on is said again


class StepTimer:
    def __init__(self, progress: Progress) -> None:
        self.seconds: dict[str, float] = {}
        self._progress, self._name, self._began = progress, "", time.perf_counter()

    def start(self, name: str) -> None:
        self.stop()
        self._name, self._began = name, time.perf_counter()
        reached(f"export: {name}")
        self._progress(name)

    def say(self, text: str) -> None:
        self._progress(text)

    def detail(self, text: str) -> None:
        self._progress(f"{self._name}: {text}")

    def stop(self) -> None:
        if self._name:
            self.seconds[self._name] = time.perf_counter() - self._began


@contextmanager
def shown(quiet: bool) -> Iterator[Progress]:
    """Steps on stderr with the seconds since the start: a line for each when piped, one line that changes on a terminal."""
    if quiet:
        yield lambda step: None
        return
    if not sys.stderr.isatty():
        lines = _Lines()
        Thread(target=lines.repeat, name="digseg-still", daemon=True).start()
        try:
            yield lines
        finally:
            lines.end()
        return
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    with Bar(SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn(),
             console=Console(stderr=True), transient=True) as bar:  # fmt: skip
        task = bar.add_task("starting")
        yield lambda step: bar.update(task, description=step)


class _Lines:
    """One line for every step, and one every STILL seconds of a long one, which says what happens inside it ("verify: ...")."""

    def __init__(self) -> None:
        self._began, self._name, self._detail = time.perf_counter(), "", ""
        self._over, self._news = Event(), Event()

    def __call__(self, step: str) -> None:
        name, _, self._detail = step.partition(": ")
        if name != self._name:
            self._name = name
            self._news.set()
            self._say(name)

    def repeat(self) -> None:
        """Until the export is over."""
        while not self._over.is_set():
            if not self._news.wait(STILL) and self._name and not self._over.is_set():
                self._say(f"{self._name}, still at it" + (f": {self._detail}" if self._detail else ""))
            self._news.clear()

    def end(self) -> None:
        self._over.set()
        self._news.set()

    def _say(self, text: str) -> None:
        print(f"[{time.perf_counter() - self._began:6.1f} s] {text}", file=sys.stderr, flush=True)
