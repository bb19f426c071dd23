"""Any exception as an exit code and one line. Torch-free.

What this project raises itself is said as it is. Of what others raise, the kinds that a user can do something about are told
in words; everything else says where its traceback was written.
"""

from __future__ import annotations

import os
import tempfile
import traceback
from json import JSONDecodeError

from digseg_engine.errors import DigsegError
from digseg_engine.extras import missing_package


def described(error: BaseException) -> tuple[int, str]:
    """Exit code and line."""
    if isinstance(error, DigsegError):
        return error.exit_code, str(error)
    if isinstance(error, ImportError) and (advice := missing_package(error)):
        return 1, advice
    if isinstance(error, OSError) and (error.filename or error.errno):
        place = f"{error.filename}: " if error.filename else ""
        return 1, f"{place}{error.strerror or error}; check the path, its permissions and the free space"
    if isinstance(error, MemoryError):
        details = f" ({error})" if str(error) else ""
        return 1, f"out of memory{details}; use a smaller picture or size, fewer prompts, or --tile"
    if isinstance(error, UnicodeError):
        return 2, f"text that is not valid here: {error}; expected UTF-8"
    if isinstance(error, RecursionError):
        return 1, "a file is nested too deeply to be read; expected one written by this project"
    if isinstance(error, JSONDecodeError):
        return 1, f"a file is not valid JSON: {error}; expected one written by this project"
    return 1, f"unexpected {type(error).__name__}: {str(error)[:300]}; {_kept_traceback(error)}"


def wants_traceback() -> bool:
    """Whether --traceback or DIGSEG_TRACEBACK asks for tracebacks on the screen."""
    return os.environ.get("DIGSEG_TRACEBACK", "") not in ("", "0")


def _kept_traceback(error: BaseException) -> str:
    """Where the traceback was written, or how to see it."""
    if wants_traceback():
        return "its traceback is below"
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    try:
        with tempfile.NamedTemporaryFile("w", prefix="digseg-", suffix=".traceback.txt", delete=False,
                                         encoding="utf-8", errors="backslashreplace") as file:  # fmt: skip
            file.write(text)
    except OSError:
        return "run it again with --traceback to see where, and report it"
    return f"its traceback is in {file.name}; please report it"
