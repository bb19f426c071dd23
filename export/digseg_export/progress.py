"""Progress and seconds of the steps of an export, and how they are shown."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str], None]


class StepTimer:
    def __init__(self, progress: Progress) -> None:
        self.seconds: dict[str, float] = {}
        self._progress, self._name, self._began = progress, "", time.perf_counter()

    def start(self, name: str) -> None:
        self.stop()
        self._name, self._began = name, time.perf_counter()
        self._progress(name)

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
    began = time.perf_counter()
    if not sys.stderr.isatty():
        yield _lines(began)
        return
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    with Bar(SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn(),
             console=Console(stderr=True), transient=True) as bar:  # fmt: skip
        task = bar.add_task("starting")
        yield lambda step: bar.update(task, description=step)


def _lines(began: float) -> Progress:
    """One line for every step; what happens inside a step ("verify: ...") gives none."""
    last = ""

    def say(step: str) -> None:
        nonlocal last
        name = step.split(": ", 1)[0]
        if name != last:
            print(f"[{time.perf_counter() - began:6.1f} s] {name}", file=sys.stderr, flush=True)
        last = name

    return say
