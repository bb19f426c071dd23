"""A lock file of one writer at a time, which says who has it: host, process, since when. Torch-free.

The system's lock (`flock`) holds, not the file: it goes with its process, however that ends. Where the system or the file system
has no such locks, nobody waits; what is written under a lock is right without it too, because it is put in place by a rename.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    CAN_LOCK = False
else:
    CAN_LOCK = True

LARGEST = 4096  # bytes of a lock file
_held: set[int] = set()  # handles of locks that this process has


@dataclass(frozen=True)
class Holder:
    """Who has a lock. since: in UTC."""

    host: str
    pid: int
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since} UTC"

    @classmethod
    def me(cls) -> Holder:
        """This process, now."""
        return cls(platform.node() or "this machine", os.getpid(), time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()))

    @classmethod
    def of(cls, path: Path) -> Holder | None:
        """What a lock file says; None for one that says nothing, or nothing of ours."""
        try:
            with path.open("rb") as file:
                body = json.loads(file.read(LARGEST))
            host, pid, since = body["host"], body["pid"], body["since"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        fits = isinstance(host, str) and type(pid) is int and isinstance(since, str)
        return cls(host[:80], pid, since[:40]) if fits else None


@contextmanager
def alone(path: Path, waits: Callable[[str], None] = lambda who: None) -> Iterator[bool]:
    """Have the lock file `path` for the block, made where it is missing (0600); its folder must be there.

    Another one that has it is waited for, and told once to `waits` in words. Yields whether the lock is held: False where there
    are no locks. A copy of this process (`os.fork`) does not hold it. Raises OSError where the file cannot be made.
    """
    handle = _locked(path, waits)
    if handle is None:
        yield False
        return
    _held.add(handle)
    try:
        with suppress(OSError):  # a full disk: the lock holds all the same
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(asdict(Holder.me())).encode(), 0)
        yield True
    finally:
        if handle in _held:  # a copy of this process has closed it, and may have given its number to another file
            _held.remove(handle)
            os.close(handle)


def lock(handle: int, waits: Callable[[], None]) -> None:
    """Have the lock of an open file or folder; `waits` is called when another one has it. Raises OSError where there are none."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        waits()
        fcntl.flock(handle, fcntl.LOCK_EX)


def _locked(path: Path, waits: Callable[[str], None]) -> int | None:
    """A handle of the file at `path` with its lock; None where there are no locks."""
    said = False

    def say() -> None:
        nonlocal said
        if not said:
            waits(str(Holder.of(path) or "another process"))
        said = True

    while CAN_LOCK:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            lock(handle, say)
            if _is_still(handle, path):
                return handle
        except BaseException as error:
            os.close(handle)
            if isinstance(error, OSError):  # a network file system without locks
                return None
            raise
        os.close(handle)  # whoever had it has removed the file: another one may have made it anew
    return None


def _is_still(handle: int, path: Path) -> bool:
    with suppress(OSError):
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    return False


def _let_go() -> None:
    """In a copy of the process: the lock is the original's, and must go when that dies."""
    for handle in _held:
        with suppress(OSError):
            os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
