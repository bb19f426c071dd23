"""Verdicts of the backend choice on disk: one JSON file per key in the user's cache folder, written atomically.

`$DIGSEG_CACHE` moves the folder. It is this user's alone (0700), because a verdict decides what is run without being
verified again; a folder of somebody else, or one that others may write to, is not used. A verdict that cannot be read or
written only costs a new measurement. Of several processes that need the same verdict one measures and the others wait for
it, where the system has locks; without, each measures, and the last one stays.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from digseg_engine.cache import folder, own_folder
from digseg_engine.errors import OutputError
from digseg_engine.files import write_json

__all__ = ["folder", "own_folder", "read", "turn", "write"]
_log = logging.getLogger("digseg_engine")

KEPT = 200
LOCK = ".measuring"  # a file whose bytes are locked, one for each key: it holds nothing
PATIENCE, PAUSE = 600.0, 0.05  # seconds: the longest that a process waits for another one, and between two looks
MOST_BYTES = 1 << 20  # of one verdict; ours have a few thousand


def read(key: str) -> dict[str, Any] | None:
    """The verdict under `key`, or None."""
    where = own_folder()
    if where is None:
        return None
    try:
        with (where / f"choice-{key}.json").open("rb") as file:
            body = json.loads(file.read(MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


def write(key: str, body: dict[str, Any]) -> Path | None:
    """Store a verdict: a reader never sees half of it, and of two writers the last one stays. Returns the path, or None
    when there is no folder to write to."""
    where = own_folder(create=True)
    if where is None:
        return None
    path = where / f"choice-{key}.json"
    try:
        write_json(path, body)
    except OutputError:
        return None
    _forget_old(where)
    return path


@contextmanager
def turn(key: str) -> Iterator[None]:
    """While one process measures the verdict of `key`, others that want to wait for it: as long as it lives, at most PATIENCE.

    An optimisation: without a folder to lock in, or without locks, nobody waits."""
    handle = _lock_file()
    if handle is None:
        yield
        return
    try:
        import fcntl

        until, said, place = time.monotonic() + PATIENCE, False, int(key[:7], 16)
        while time.monotonic() < until:
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
                break
            except (BlockingIOError, PermissionError):
                if not said:
                    _log.info("another process is choosing a backend for this model; waiting for its answer")
                said = True
                time.sleep(PAUSE)
            except OSError:  # a network file system without locks
                break
        yield
    finally:
        os.close(handle)  # and with it the lock goes, as it does with the process


def _lock_file() -> int | None:
    where = own_folder(create=True) if os.name == "posix" else None
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        return None if where is None else os.open(where / LOCK, flags, 0o600)
    except OSError:
        return None


def _forget_old(where: Path) -> None:
    """Keep the KEPT newest verdicts."""
    with suppress(OSError):  # another process is tidying up
        found = sorted(where.glob("choice-*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in found[KEPT:]:
            path.unlink(missing_ok=True)
