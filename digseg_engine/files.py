"""Every file a user keeps is written here: into a temporary sibling, flushed, renamed into place, the folder flushed. Nothing
half-written.

A reader never sees a part of a file under its final name, whatever ends the writer: an exception, Ctrl-C, a full disk or
a kill. (A kill leaves the temporary sibling, whose name begins with `.digseg-` and ends in `.tmp`; the next program that
writes to the folder removes it.) The finished file has the mode that the user's umask gives, whatever the library that filled it
chose. Torch-free.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digseg_engine.crash_points import reached
from digseg_engine.errors import OutputError

FORGOTTEN = 7 * 86400  # seconds after which what another machine left is nobody's any more
OWNED = re.compile(r"([0-9a-f]{8})-(\d+)-[0-9a-f]{8}")
_tidied: set[Path] = set()  # folders that this process has looked through


def temporary_sibling(target: Path) -> Path:
    """A name beside `target` that nobody uses: short, so that a long final name is judged by itself, and hidden."""
    return target.absolute().parent / f".digseg-{owned_name()}.tmp"


def owned_name() -> str:
    """A part of a temporary name that says whose it is: this system and its processes, this process, and a number."""
    return f"{_system()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


@cache
def _system() -> str:
    """What tells process numbers of here from those of another machine, container or boot."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:8]


def abandoned(path: Path) -> bool:
    """Was a temporary file or folder, called by `owned_name`, left by a process that is no more? Never true when unsure."""
    owner = OWNED.search(path.name)
    if owner is None:
        return False
    if owner[1] != _system():
        with suppress(OSError):
            return time.time() - path.stat().st_mtime > FORGOTTEN
        return False
    if os.name != "posix" or int(owner[2]) == os.getpid():
        return False
    try:
        os.kill(int(owner[2]), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def tidy(folder: Path) -> None:
    """Remove what killed writers left in a folder: once for each folder in a process, because folders may be large."""
    if folder in _tidied:
        return
    _tidied.add(folder)
    with suppress(OSError):
        for path in folder.glob(".digseg-*.tmp"):
            if abandoned(path):
                path.unlink(missing_ok=True)


@contextmanager
def replacing(target: Path | str) -> Iterator[Path]:
    """A temporary path to write to; on success it becomes `target`, on any error it disappears and `target` is as before.

    Raises OutputError, naming `target`, for whatever the file system refuses: a full disk, a missing or read-only
    folder, a name too long, a folder in its place. OSErrors of the body are taken as errors of this file.
    """
    target = Path(target)
    temporary = temporary_sibling(target)
    tidy(temporary.parent)
    try:
        mode = _create(temporary)
        reached("file created")
        yield temporary
        reached("file filled")
        os.chmod(temporary, mode)
        flush(temporary)
        reached("file flushed")
        os.replace(temporary, target)
        reached("file renamed")
        flush_names(target.absolute().parent)
    except OSError as error:
        raise OutputError(
            f"cannot write {target}: {error.strerror or error}; free the place or choose another"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _create(path: Path) -> int:
    """An empty file; returns the mode that the umask gave it."""
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return os.fstat(handle).st_mode & 0o777
    finally:
        os.close(handle)


def flush(path: Path) -> None:
    """Wait until the file's (or, on POSIX, the folder's) contents are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_names(folder: Path) -> None:
    """Wait until a rename in a folder is on the disk, where the system lets folders be flushed: of one that it does not let,
    the older or the newer file is found after a power cut, as whole as before."""
    if os.name == "posix":
        with suppress(OSError):
            flush(folder)


def write_bytes(target: Path | str, body: bytes | memoryview) -> None:
    with replacing(target) as path:
        path.write_bytes(body)


def write_text(target: Path | str, text: str) -> None:
    """UTF-8."""
    write_bytes(target, text.encode("utf-8"))


def write_json(target: Path | str, value: Any, sort_keys: bool = False) -> None:
    """Indented, in UTF-8, with a line break at the end."""
    write_text(target, json.dumps(value, indent=2, sort_keys=sort_keys, ensure_ascii=False) + "\n")


def write_arrays(
    target: Path | str, arrays: Mapping[str, NDArray[Any]], metadata: dict[str, str] | None = None
) -> None:  # fmt: skip
    """NumPy arrays as safetensors. Transposed views and slices are made dense first: since safetensors 0.8 the library
    writes raw memory without looking at strides."""
    from safetensors.numpy import save

    write_bytes(target, save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, metadata))
