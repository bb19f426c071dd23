"""The one boundary of every command: whatever happens inside becomes an exit code and, when it failed, one line.

0 done, 1 failed, 2 usage or input, 128 + n ended by signal n (130 by Ctrl-C), 141 (SIGPIPE's) when nobody reads stdout any
more, without a word.
"""

from __future__ import annotations

import logging
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from digseg_engine.console import ReaderGoneError, StdoutError, complain, end_output, forgiving_streams
from digseg_engine.faults import described, wants_traceback

PIPE_CLOSED = 128 + 13
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
        try:
            code = command() or 0
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else 0 if leaving.code is None else 1
        sys.stdout.flush()
    except ReaderGoneError:
        code = PIPE_CLOSED
    except StdoutError as error:
        code = 1
        complain(name, str(error))
    except Terminated:
        code = _stopped(name, "SIGTERM", signal.SIGTERM)
    except KeyboardInterrupt:
        code = _stopped(name, "Ctrl-C", signal.SIGINT)
    except Exception as error:
        code, message = described(error)
        complain(name, message)
        if wants_traceback():
            traceback.print_exc()
    end_output()
    sys.exit(code)


def quiet_readers() -> None:
    """Keep what the readers of pictures remark about odd files off the terminal, beside our one line. Process-wide, so a
    command's business."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
    for name in ("PIL", "tifffile"):
        logging.getLogger(name).addHandler(logging.NullHandler())


def _stopped(name: str, how: str, number: int) -> int:
    with suppress(OSError):
        complain(name, STOPPED.format(how))
    return 128 + number


def _terminated(number: int, frame: FrameType | None) -> None:
    raise Terminated
