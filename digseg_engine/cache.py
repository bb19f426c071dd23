"""The user's cache folder: what can be made again, kept between programs. Torch-free."""

from __future__ import annotations

import logging
import os
import stat
import sys
from pathlib import Path

_log = logging.getLogger("digseg_engine")


def folder() -> Path | None:
    """$DIGSEG_CACHE, else `digseg` in the platform's cache folder of this user; None for a user without a home."""
    if chosen := os.environ.get("DIGSEG_CACHE"):
        return Path(chosen)
    try:
        home = Path.home()
    except RuntimeError:
        return None
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "digseg" / "Cache"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "digseg"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "digseg"


def own_folder(create: bool = False) -> Path | None:
    """The folder where it is there (or can be made, with `create`) and nobody else can write to it, else None."""
    path = folder()
    try:
        if path is None:
            return None
        if create:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(mode=0o700, exist_ok=True)
        about = path.stat()
    except OSError:
        return None
    if not stat.S_ISDIR(about.st_mode):
        return None
    if hasattr(os, "getuid") and (about.st_uid != os.getuid() or about.st_mode & 0o022):
        _log.warning("the cache folder %s is not used: it belongs to another user or others may write to it; "
                     "chmod 700 it, or name one of your own in DIGSEG_CACHE", path)  # fmt: skip
        return None
    return path
