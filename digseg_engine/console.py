"""What commands say: results on stdout, one line per complaint on stderr. Text a console cannot show never ends a run."""

from __future__ import annotations

import io
import sys


def forgiving_streams() -> None:
    """From now on, characters that stdout or stderr cannot show are written as escapes such as \\u9053."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def one_line(message: str) -> str:
    return " ".join(message.split())


def complain(name: str, message: str) -> None:
    """One line on stderr: `name: error: message`."""
    print(f"{name}: error: {one_line(message)}", file=sys.stderr, flush=True)


def note(name: str, message: str) -> None:
    """One line on stderr about something that is no error: `name: message`."""
    print(f"{name}: {one_line(message)}", file=sys.stderr, flush=True)
