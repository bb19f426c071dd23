"""What `digseg ask` does: one picture, encoded once, prompts from a terminal or a pipe, one line for each answer.

On a terminal earlier prompts come back with the arrow keys and are completed by the tab key. `-` and a prompt takes its
mask out of the overlay again; an empty line is left out; the end of the input, or `quit`, ends it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from digseg_engine.console import complain, note, telling
from digseg_engine.errors import DigsegError
from digseg_engine.images import read_picture
from digseg_engine.names import stems
from digseg_engine.runtime.encoding import Encoding
from digseg_engine.runtime.engine import Engine
from digseg_engine.runtime.inputs import check_output
from digseg_engine.runtime.record import known, missing, percent
from digseg_engine.runtime.result import Segmentation

QUESTION, LEAVE, ENDS = "find> ", "-", ("quit", "exit")
HELP = f'type what to find; "{LEAVE}road" takes road out of the overlay again; an empty line does nothing; quit ends'


@dataclass(frozen=True)
class Question:
    """What is asked for; the fields are the options of the command."""

    photo: Path
    output: Path = Path("out")
    bundle: Path | None = None
    backend: str = "auto"
    device: str | None = None
    threads: int | None = None
    engines: Path | None = None
    imgsz: int | None = None
    threshold: float = 0.5
    all_prompts: bool = False
    batch: bool = False
    as_json: bool = False


@dataclass
class Session:
    """The encoded picture, and the prompts that the overlay shows."""

    engine: Engine
    picture: Encoding
    question: Question
    stem: str
    shown: list[str] = field(default_factory=list)

    def answer(self, prompt: str) -> None:
        """Ask, print one line, write the overlay anew. Raises DigsegError for a prompt that cannot be asked."""
        began = time.perf_counter()
        result = self._segment([prompt])
        seconds = time.perf_counter() - began
        if prompt not in self.shown:
            self.shown.append(prompt)
        path = self.draw(result if self.shown == [prompt] else None)
        (found,) = result.answers
        if self.question.as_json:
            body = {**asdict(found), "score": known(found.score), "seconds": round(seconds, 5), "overlay": str(path)}
            print(json.dumps(body, ensure_ascii=False), flush=True)
            return
        said = percent(found.area) + _scored(found.score) if found.found else missing(found)
        print(f"{prompt}: {said}  ({1000 * seconds:.0f} ms)  ->  {path}", flush=True)

    def leave_out(self, prompt: str) -> None:
        """Take a prompt out of the overlay."""
        if prompt not in self.shown:
            asked = ", ".join(self.shown) or "nothing yet"
            complain("digseg", f"{prompt!r} is not in the overlay; asked so far: {asked}")
            return
        self.shown.remove(prompt)
        if self.shown:
            print(f"{prompt} left out  ->  {self.draw()}", flush=True)
        else:
            print(f"{prompt} left out; nothing else was asked", flush=True)

    def draw(self, result: Segmentation | None = None) -> Path:
        """The overlay of all prompts shown."""
        result = result or self._segment(self.shown)
        return result.save(self.question.output, f"{self.stem}.ask", ("overlay", "json"))[0]

    def _segment(self, prompts: list[str]) -> Segmentation:
        question = self.question
        return self.engine.segment(
            self.picture, prompts, threshold=question.threshold, all_prompts=question.all_prompts
        )


def _scored(score: float) -> str:
    return "" if known(score) is None else f", score {score:.2f}"


def ask(question: Question) -> int:
    """Exit code: 0 when every prompt was answered, 2 when one could not be."""
    check_output(question.output)
    picture = read_picture(question.photo)
    with telling():
        engine = Engine.load(question.bundle, question.backend, size=question.imgsz, prompts=1, threads=question.threads,
                             device=question.device, engines=question.engines)  # fmt: skip
    encoding = engine.encode(picture, question.imgsz)
    note("digseg", f"{question.photo} encoded at {encoding.size} px in {1000 * encoding.seconds['encode']:.0f} ms")
    session, bad = Session(engine, encoding, question, stems([question.photo])[0]), 0
    spoken = not question.batch and sys.stdin.isatty()
    if spoken:
        note("digseg", HELP)
    for line in _typed(session.shown) if spoken else sys.stdin:
        words = line.strip()
        if spoken and words in ENDS:
            break
        try:
            if words.startswith(LEAVE) and spoken:
                session.leave_out(words[len(LEAVE) :].strip())
            elif words:
                session.answer(words)
        except DigsegError as error:
            bad += 1
            complain("digseg", str(error))
    return 2 if bad and not spoken else 0


def _typed(asked: list[str]) -> Iterator[str]:
    """Lines of a terminal, with history and completion where the library of both is there."""
    try:
        import readline
    except ImportError:  # Windows
        pass
    else:
        readline.set_completer_delims("")
        readline.set_completer(lambda text, state: ([each for each in asked if each.startswith(text)] + [None])[state])
        readline.parse_and_bind("tab: complete")
    while True:
        try:
            yield input(QUESTION)
        except EOFError:
            print()
            return
