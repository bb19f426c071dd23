"""Verdicts of the backend choice on disk: one JSON file per key in the user's cache folder, written atomically.

`$DIGSEG_CACHE` moves the folder. It is this user's alone (0700), because a verdict decides what is run without being
verified again; a folder of somebody else, or one that others may write to, is not used. A verdict that cannot be read or
written only costs a new measurement.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from digseg_engine.cache import folder, own_folder
from digseg_engine.errors import OutputError
from digseg_engine.files import write_json

__all__ = ["folder", "own_folder", "read", "write"]

KEPT = 200
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


def _forget_old(where: Path) -> None:
    """Keep the KEPT newest verdicts."""
    with suppress(OSError):  # another process is tidying up
        found = sorted(where.glob("choice-*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in found[KEPT:]:
            path.unlink(missing_ok=True)
