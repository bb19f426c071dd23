"""Verdicts of the backend choice on disk: one JSON file per key in the user's cache folder, written atomically.

`$DIGSEG_CACHE` moves the folder. A verdict that cannot be read or written only costs a new measurement.
"""

from __future__ import annotations

import json
import os
import sys
import uuid
from pathlib import Path
from typing import Any

KEPT = 200


def folder() -> Path:
    """$DIGSEG_CACHE, else `digseg` in the platform's cache folder of this user."""
    if given := os.environ.get("DIGSEG_CACHE"):
        return Path(given)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "digseg" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "digseg"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "digseg"


def read(key: str) -> dict[str, Any] | None:
    """The verdict under `key`, or None."""
    try:
        body = json.loads((folder() / f"choice-{key}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return body if isinstance(body, dict) else None


def write(key: str, body: dict[str, Any]) -> Path | None:
    """Store a verdict: a temporary file renamed into place, so that a reader never sees half of it, and of two writers
    the last one stays. Returns the path, or None when the folder cannot be written."""
    path = folder() / f"choice-{key}.json"
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(body, indent=1), encoding="utf-8")
        temporary.replace(path)
    except OSError:
        return None
    _forget_old(path.parent)
    return path


def _forget_old(where: Path) -> None:
    """Keep the KEPT newest verdicts."""
    try:
        found = sorted(where.glob("choice-*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in found[KEPT:]:
            path.unlink(missing_ok=True)
    except OSError:
        return  # another process is tidying up
