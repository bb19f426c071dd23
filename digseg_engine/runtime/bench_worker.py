"""One backend, measured in a process of its own: a job as JSON on standard input, an answer a line on standard output.

A process of its own, because its peak memory is then its own, its start is a start, and a size that the system kills it for
ends nobody else. Run by `bench.py`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from digseg_engine.console import one_line
from digseg_engine.errors import BackendError, DigsegError
from digseg_engine.runtime.backends import in_one_line
from digseg_engine.runtime.choice import Task
from digseg_engine.runtime.engine import Engine
from digseg_engine.runtime.peak import forget_peak, peak_bytes
from digseg_engine.runtime.timing import keeping, milliseconds, repeated

STEPS = ("text", "fit", "encode", "presence", "masks", "label")  # of a question, as the pipeline names them
WARM_UP = 1


def pictures_of(task: Task) -> list[Any]:
    """Coloured squares, [size, size, 3] each: nothing of what is measured depends on what they show."""
    rng = np.random.default_rng(0)
    cells = -(-task.size // 16)
    squares = rng.integers(0, 255, (task.batch, cells, cells, 3), np.uint8).repeat(16, 1).repeat(16, 2)
    return list(squares[:, : task.size, : task.size])


def question(ask: Callable[[], Any], runs: int, seconds: float) -> dict[str, Any]:
    """What one question takes: whole, and step by step."""
    kept: list[dict[str, float]] = []
    whole = repeated(keeping(ask, kept), runs, WARM_UP, seconds)
    steps = kept[-len(whole) :]
    return {
        **milliseconds(whole),
        "runs": len(whole),
        "steps": {name: milliseconds([each.get(name, 0.0) for each in steps]) for name in STEPS},
    }


def measure(engine: Engine, task: Task, runs: int, seconds: float) -> dict[str, Any]:
    """First and later questions of one shape, every prompt decoded: `batch` pictures, `prompts` prompts about each.

    A first question encodes its prompts and its pictures, a later one finds both encoded. Raises a DigsegError for what does
    not fit.
    """
    pictures, prompts = pictures_of(task), [f"thing {i}" for i in range(task.prompts)]

    def first() -> Any:
        engine.prompts.clear()
        return engine.segment_batch(pictures, prompts, task.size, all_prompts=True)

    forget_peak()
    began = time.perf_counter()
    answers = first()
    very_first = time.perf_counter() - began
    notes = sorted({note for answer in answers for note in answer.fallbacks})  # had to be halved, and such
    asked = question(first, runs, seconds)
    encodings, prepared = [engine.encode(picture, task.size) for picture in pictures], engine.prepare(prompts)
    later = question(lambda: engine.segment_batch(encodings, prepared, all_prompts=True), runs, seconds)
    return {
        "first_call_ms": 1000 * very_first,
        "first": asked,
        "later": later,
        "peak_bytes": peak_bytes(),
        "notes": notes,
    }


def start(job: dict[str, Any], say: Callable[[dict[str, Any]], None]) -> None:
    """Open the model and answer one question about one picture, as a program does that was started for it."""
    engine = Engine.load(**job["load"], pictures=1)
    (picture,) = pictures_of(Task(engine.image_size))
    masks = engine.segment(picture, ["thing"], all_prompts=True).masks
    say({"masks": len(masks)})


def work(job: dict[str, Any], say: Callable[[dict[str, Any]], None]) -> None:
    """Measure every shape of a job."""
    began = time.perf_counter()
    engine = Engine.load(**job["load"])
    say({"detail": engine.backend.detail, "load_s": time.perf_counter() - began})
    for shape in job["tasks"]:
        task = Task(**shape)
        try:
            say({**asdict(task), **measure(engine, task, job["runs"], job["seconds"])})
        except (DigsegError, MemoryError) as error:
            said = "out of memory" if isinstance(error, MemoryError) else one_line(in_one_line(error))
            say({**asdict(task), "reason": said})


def main() -> None:
    """What libraries print goes to standard error; standard output is for answers alone."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    job = json.load(sys.stdin)
    try:
        (start if job["start"] else work)(job, say)
    except (DigsegError, MemoryError) as error:
        say({"failed": "out of memory" if isinstance(error, MemoryError) else str(BackendError(in_one_line(error)))})


if __name__ == "__main__":
    main()
