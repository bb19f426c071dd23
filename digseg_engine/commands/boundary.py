"""The one boundary of every command: whatever happens inside becomes an exit code and, when it failed, one line.

0 done, 1 failed, 2 usage or input, 128 + n ended by signal n (130 by Ctrl-C).
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from json import JSONDecodeError
from types import FrameType
from typing import NoReturn

from digseg_engine.console import complain, forgiving_streams
from digseg_engine.errors import DigsegError
from digseg_engine.extras import missing_package

STOPPED = "stopped by {}; no file is left half-written"


class Terminated(KeyboardInterrupt):
    """SIGTERM, as an exception: what is open is closed and removed on the way out, as with Ctrl-C."""


def guarded(command: Callable[[], int | None], name: str) -> NoReturn:
    """Run a command line and leave the process with its exit code. `name` begins every line of complaint."""
    forgiving_streams()
    quiet_readers()
    with suppress(ValueError, OSError):  # not in the main thread, or no such signal here
        signal.signal(signal.SIGTERM, _terminated)
    code = 1
    try:
        code = command() or 0
        sys.stdout.flush()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 0 if leaving.code is None else 1
    except BrokenPipeError:
        _silence_stdout()
    except Terminated:
        code = _stopped(name, "SIGTERM", signal.SIGTERM)
    except KeyboardInterrupt:
        code = _stopped(name, "Ctrl-C", signal.SIGINT)
    except Exception as error:
        code, message = described(error)
        complain(name, message)
        _show_traceback()
    sys.exit(code)


def quiet_readers() -> None:
    """Keep what the readers of pictures remark about odd files off the terminal, beside our one line. Process-wide, so a
    command's business."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
    for name in ("PIL", "tifffile"):
        logging.getLogger(name).addHandler(logging.NullHandler())


def described(error: BaseException) -> tuple[int, str]:
    """Exit code and line for any exception. What we raised ourselves is said as it is; of what others raise, the kinds that
    a user can do something about are told in words, and everything else says where its traceback was written."""
    if isinstance(error, DigsegError):
        return error.exit_code, str(error)
    if isinstance(error, ImportError) and (advice := missing_package(error)):
        return 1, advice
    if isinstance(error, OSError):
        place = error.filename or getattr(error, "filename2", None)
        return (
            1,
            f"{f'{place}: ' if place else ''}{error.strerror or error}; check the path, its permissions and the free space",
        )
    if isinstance(error, MemoryError):
        return (
            1,
            f"out of memory{f': {error}' if str(error) else ''}; use a smaller picture or size, fewer prompts, or --tile",
        )
    if isinstance(error, UnicodeError):
        return 2, f"text that is not valid here: {error}; expected UTF-8"
    if isinstance(error, RecursionError):
        return 1, "a file is nested too deeply to be read; expected one written by this project"
    if isinstance(error, JSONDecodeError):
        return 1, f"a file is not valid JSON: {error}; expected one written by this project"
    return 1, f"unexpected {type(error).__name__}: {str(error)[:300]}; {_kept_traceback(error)}"


def wants_traceback() -> bool:
    return os.environ.get("DIGSEG_TRACEBACK", "") not in ("", "0")


def _show_traceback() -> None:
    if wants_traceback():
        traceback.print_exc()


def _kept_traceback(error: BaseException) -> str:
    """Where the traceback was written, or how to see it."""
    if wants_traceback():
        return "traceback below"
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    try:
        with tempfile.NamedTemporaryFile("w", prefix="digseg-", suffix=".traceback.txt", delete=False,
                                         encoding="utf-8", errors="backslashreplace") as file:  # fmt: skip
            file.write(text)
    except OSError:
        return "run it again with --traceback to see where, and report it"
    return f"where is written in {file.name}; please report it"


def _stopped(name: str, how: str, number: int) -> int:
    with suppress(OSError):
        complain(name, STOPPED.format(how))
    return 128 + number


def _terminated(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _silence_stdout() -> None:
    """The reader of a pipe has gone: nothing more is written, not even at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
