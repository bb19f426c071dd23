"""Folders of this user's cache that nobody else can write: machine code is kept there, and nowhere else.

`$DIGSEG_CACHE` (or the platform's cache folder) / name / key, every level below the cache made with mode 0700. A folder
or file that belongs to another user, or that others may write, is refused rather than trusted.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from digseg_engine.cache import folder as cache_folder
from digseg_engine.errors import BackendError

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def private_folder(*parts: str, create: bool = True) -> Path:
    """`parts` under the user's cache, created with mode 0700. Raises BackendError for one that is not this user's alone."""
    at = cache_folder()
    if at is None:
        raise BackendError("this user has no home, so there is no cache folder; let $DIGSEG_CACHE name one")
    try:
        if create:
            at.mkdir(parents=True, exist_ok=True)
        for part in parts:
            at = at / part
            if create:
                at.mkdir(mode=0o700, exist_ok=True)
            if at.exists():
                _mine(at, at.lstat(), stat.S_ISDIR)
    except OSError as error:
        raise BackendError(f"{at} cannot be made: {error.strerror or error}; let $DIGSEG_CACHE name a folder that you "
                           "can write") from error  # fmt: skip
    return at


def read_private(path: Path, most: int) -> bytes:
    """All bytes of a file, opened once. Raises BackendError for a link, another user's file, one that others can write,
    or more than `most` bytes; FileNotFoundError when it is not there."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BackendError(f"{path} cannot be opened: {error.strerror or error}; delete it") from error
    with os.fdopen(handle, "rb") as file:
        about = os.fstat(file.fileno())
        _mine(path, about, stat.S_ISREG)
        if about.st_size > most:
            raise BackendError(f"{path} holds {about.st_size} bytes, at most {most} expected; delete it")
        return file.read(about.st_size)  # room for this many bytes is made before the first is read


def _mine(path: Path, about: os.stat_result, kind: Callable[[int], bool]) -> None:
    if not kind(about.st_mode):
        raise BackendError(f"{path} is a link or no plain file or folder; delete it")
    if hasattr(os, "geteuid") and about.st_uid != os.geteuid():
        raise BackendError(f"{path} belongs to another user (id {about.st_uid}); delete it, or let $DIGSEG_CACHE name a "
                           "folder of your own")  # fmt: skip
    if os.name == "posix" and about.st_mode & OTHERS_WRITE:
        raise BackendError(f"{path} can be written by others (mode {about.st_mode & 0o777:o}); `chmod go-w` it after a "
                           "look, or delete it")  # fmt: skip
