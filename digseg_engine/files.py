"""Every file a user keeps is written here: into a temporary sibling, flushed, renamed into place. Nothing half-written.

A reader never sees a part of a file under its final name, whatever ends the writer: an exception, Ctrl-C, a full disk or
a kill. (A kill leaves the temporary sibling, whose name begins with `.digseg-` and ends in `.tmp`.) The finished file has
the mode that the user's umask gives, whatever the library that filled it chose. Torch-free.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digseg_engine.errors import OutputError


def temporary_sibling(target: Path) -> Path:
    """A name beside `target` that nobody uses: short, so that a long final name is judged by itself, and hidden."""
    return target.absolute().parent / f".digseg-{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp"


@contextmanager
def replacing(target: Path | str) -> Iterator[Path]:
    """A temporary path to write to; on success it becomes `target`, on any error it disappears and `target` is as before.

    Raises OutputError, naming `target`, for whatever the file system refuses: a full disk, a missing or read-only
    folder, a name too long, a folder in its place. OSErrors of the body are taken as errors of this file.
    """
    target = Path(target)
    temporary = temporary_sibling(target)
    try:
        mode = _create(temporary)
        yield temporary
        os.chmod(temporary, mode)
        flush(temporary)
        os.replace(temporary, target)
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
