"""Places at which a program can be told to die, so that tests can see what is left then; nothing happens unless one is asked for.

Every step of a writer after which the disk looks different comes by here (`files.py`, `folders.py`, the states of a training, the
stages of an export). `$DIGSEG_CRASH` makes the Nth passage of a process its last, as SQLite's tests do:

    DIGSEG_CRASH=3:exit digseg segment ...      # dies without a word and without cleaning up, as after a power cut
    DIGSEG_CRASH=3:kill digseg segment ...      # by SIGKILL
    DIGSEG_CRASH=log:FILE digseg segment ...    # adds the name of every place it comes by to FILE

`python -m benchmarks.crashes` goes through all of them. Torch-free.
"""

from __future__ import annotations

import os
import signal

VARIABLE = "DIGSEG_CRASH"
EXIT_CODE = 70  # of a process that was told to leave
_wanted = os.environ.get(VARIABLE, "")  # of this process; `arm` changes it
_passed = 0


def arm(wanted: str) -> None:
    """As if the process had begun with this in the variable; "" for nothing."""
    global _wanted, _passed
    _wanted, _passed = wanted, 0


def reached(name: str) -> None:
    """The process comes by the place `name`, and may end here."""
    if _wanted:
        _pass(name)


def _pass(name: str) -> None:
    global _passed
    _passed += 1
    number, _, how = _wanted.partition(":")
    if number == "log":
        handle = os.open(how, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(handle, f"{name}\n".encode())
        os.close(handle)
    elif number == str(_passed):
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
        os._exit(EXIT_CODE)
