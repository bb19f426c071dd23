"""What commands say: results on stdout, one line per complaint on stderr. Text a console cannot show never ends a run."""

from __future__ import annotations

import io
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unicodedata import category

from digseg_engine.words import readable

SECONDS = 10.0  # between two lines of a `Pace`
TURNS = frozenset(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))  # what turns the direction of reading


class ReaderGoneError(BaseException):
    """Nobody reads our stdout any more (`digseg ... | head`). No failure of any picture or file, so no `except Exception`
    takes it for one: the command ends, and what is open is removed on the way out."""


class StdoutError(BaseException):
    """Our stdout cannot be written (a full disk behind it). As above: no failure of any picture or file."""


class Stdout:
    """A stream whose writes raise ReaderGoneError once the other end of its pipe is closed, StdoutError when they fail."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return int(self._watched(self._stream.write, text))

    def flush(self) -> None:
        self._watched(self._stream.flush)

    def _watched(self, do: Any, *arguments: Any) -> Any:
        try:
            return do(*arguments)
        except BrokenPipeError as error:
            self.give_up()
            raise ReaderGoneError from error
        except OSError as error:
            self.give_up()
            raise StdoutError(
                f"cannot write to standard output: {error.strerror or error}; results in files are not concerned"
            ) from error

    def give_up(self) -> None:
        """What is buffered and what still comes goes nowhere, also at exit."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def forgiving_streams() -> None:
    """From now on, characters that stdout or stderr cannot show are written as escapes such as \\u9053, and a closed pipe is
    told from a file that cannot be written."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if sys.stdout is None:  # closed by whoever started us (`>&-`)
        sys.stdout = io.StringIO()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout = Stdout(sys.stdout)  # type: ignore[assignment]


def end_output() -> None:
    """Nothing is left for the interpreter to write at exit, where a failure would be told in its own words."""
    try:
        sys.stdout.flush()
    except (OSError, ReaderGoneError, StdoutError):
        if isinstance(sys.stdout, Stdout):
            sys.stdout.give_up()


def one_line(message: str) -> str:
    """Words on one line; characters that would steer a terminal, or turn the direction of reading, are written as escapes."""
    line = " ".join(message.split())
    return "".join(c if category(c) != "Cc" and c not in TURNS else c.encode("unicode_escape").decode() for c in line)


def complain(name: str, message: str) -> None:
    """One line on stderr: `name: error: message`."""
    print(f"{name}: error: {one_line(message)}", file=sys.stderr, flush=True)


def note(name: str, message: str) -> None:
    """One line on stderr about something that is no error: `name: message`."""
    print(f"{name}: {one_line(message)}", file=sys.stderr, flush=True)


class Pace:
    """Work of `total` equal parts that no bar shows: a line on stderr before it begins, and one with the time left every ten
    seconds. Called with the number of parts that were done."""

    def __init__(self, name: str, total: int, speaks: bool = True) -> None:
        self.name, self.total, self.speaks, self.done = name, total, speaks, 0
        self.began = self.said = time.monotonic()
        if speaks:
            note("digseg", f"{name} ({total})")

    def __call__(self, done: int = 1) -> None:
        self.done += done
        now = time.monotonic()
        if self.speaks and now - self.said >= SECONDS and self.done < self.total:
            self.said = now
            left = readable((now - self.began) / self.done * (self.total - self.done))
            note("digseg", f"{self.name}: {self.done} of {self.total}, about {left} left")


class _Lines(logging.Handler):
    """What the engine logs, as lines of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        note("digseg", record.getMessage())


@contextmanager
def telling(quiet: bool = False) -> Iterator[None]:
    """Say what the engine is at while it is opened or measured: choosing a backend may compile for tens of seconds."""
    log, lines = logging.getLogger("digseg_engine"), _Lines(logging.WARNING if quiet else logging.INFO)
    level = log.level
    log.addHandler(lines)
    log.setLevel(lines.level)
    try:
        yield
    finally:
        log.removeHandler(lines)
        log.setLevel(level)
