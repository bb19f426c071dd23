"""The `digseg` command: the plain form of `segment` starts at once, everything else goes through `commands.py`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from digseg_engine.arguments import complain, plain_segment
from digseg_engine.errors import DigsegError


def guarded(command: Callable[..., Any], name: str) -> None:
    """Run a command line; every expected error is one line on stderr with exit code 2 (usage, input) or 1."""
    code = 0
    try:
        code = command(standalone_mode=False) or 0
    except DigsegError as error:
        code = error.exit_code
        complain(name, str(error))
    except KeyboardInterrupt:
        code = _interrupted(name)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:
        # Typer carries its own copy of click in some releases; the names are the same in all of them.
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if "ClickException" in kinds:
            code = 2
            complain(name, error.format_message())  # type: ignore[attr-defined]
        elif "Abort" in kinds:
            code = _interrupted(name)
        else:
            raise
    sys.exit(code)


def _interrupted(name: str) -> int:
    complain(name, "interrupted; nothing half-written is left behind")
    return 130


def main() -> None:
    """Entry point of `digseg`."""
    plain = plain_segment(sys.argv[1:])
    if plain is None:
        from digseg_engine.commands import app

        guarded(app, "digseg")
    else:
        from digseg_engine.runtime.pictures import segment_pictures

        guarded(lambda **_: segment_pictures(**plain), "digseg")
