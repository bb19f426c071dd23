"""Files by address: paths of this machine, and whatever fsspec reaches (s3://, gs://, https://, memory://). Torch-free.

fsspec is imported only for an address that is none of this machine.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from glob import glob, has_magic
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from digseg_engine.errors import DigsegError, InputError, MissingPackageError
from digseg_engine.extras import require

NUMBERS = re.compile(r"\{(\d+)\.\.(\d+)\}")
MARKS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "created")  # what file systems call them
TRIES = 4  # of a read from afar; waits of 0.5, 1 and 2 seconds lie between


def remote(address: str) -> bool:
    """Does the address need fsspec?"""
    return "://" in address and not address.startswith("file://")


def local_path(address: str) -> Path:
    return Path(address.removeprefix("file://"))


@dataclass(frozen=True)
class Blob:
    """One file at an address. `stamp` changes when its contents do, as far as the file system tells."""

    address: str
    size: int
    stamp: str

    @property
    def remote(self) -> bool:
        return remote(self.address)

    def read(self, start: int, end: int) -> bytes:
        """Bytes start..end. Raises InputError naming the address when they cannot be read, or are fewer."""
        if self.remote:
            body = _read_far(self.address, start, end)
        else:
            with _reading(self.address), local_path(self.address).open("rb") as file:
                file.seek(start)
                body = file.read(end - start)
        if len(body) != end - start:
            raise InputError(f"{self.address} is cut short: {len(body)} of {end - start} bytes from byte {start} on; copy it "
                             "again")  # fmt: skip
        return body

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The file, to be read from its beginning to its end."""
        with _reading(self.address):
            if self.remote:
                files, path = _file_system(self.address)
                with files.open(path, "rb") as file:
                    yield file
            else:
                with local_path(self.address).open("rb") as file:
                    yield file


def find_blob(address: str) -> Blob:
    """Size and stamp of the file at an address. Raises InputError when there is none."""
    with _reading(address):
        if not remote(address):
            about = local_path(address).stat()
            return Blob(address, about.st_size, str(about.st_mtime_ns))
        files, path = _file_system(address)
        facts = files.info(path)
    if facts.get("size") is None:
        raise InputError(
            f"{address} does not tell its size, so parts of it cannot be read; expected a server that takes ranges"
        )
    return Blob(address, int(facts["size"]), next((str(facts[mark]) for mark in MARKS if facts.get(mark)), ""))


def read_text(address: str) -> str | None:
    """The text at an address, None where nothing is. Raises InputError when it cannot be read."""
    with _reading(address):
        try:
            if remote(address):
                files, path = _file_system(address)
                return bytes(files.cat_file(path)).decode("utf-8")
            return local_path(address).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None


def expand(pattern: str) -> list[str]:
    """Addresses that a pattern means: {000..009} counts, * and ? match, of a folder all .tar files; sorted by name.

    Raises InputError when nothing is there."""
    found = [address for counted in _counted(pattern) for address in _matching(counted)]
    if not found:
        raise InputError(f"{pattern} means no file; expected .tar files; check the address")
    return list(dict.fromkeys(found))


def files_at(address: str, recursive: bool = False) -> list[str]:
    """Addresses of the files that a folder at an address holds, or that a pattern with * or ? matches; sorted. Raises InputError
    when it cannot be read."""
    with _reading(address):
        files, path = _file_system(address)
        if has_magic(path):
            facts = files.glob(path, detail=True).values()
        elif recursive:
            facts = files.find(path, detail=True).values()
        else:
            facts = files.ls(path, detail=True)
        return sorted(str(files.unstrip_protocol(fact["name"])) for fact in facts if fact.get("type") != "directory")


def beside(address: str, name: str) -> str:
    """The address of another file in the same folder."""
    parts = urlsplit(address) if remote(address) else None
    if parts is not None and parts.query:  # a signed address: what is signed is one file
        address = address.removesuffix(f"?{parts.query}")
    head, slash, _ = address.rpartition("/")
    return head + slash + name


def _counted(pattern: str) -> list[str]:
    """ "a-{08..10}" -> "a-08", "a-09", "a-10"."""
    numbers = NUMBERS.search(pattern)
    if numbers is None:
        return [pattern]
    first, last = numbers.groups()
    before, after = pattern[: numbers.start()], pattern[numbers.end() :]
    return [
        text for n in range(int(first), int(last) + 1) for text in _counted(f"{before}{n:0{len(first)}d}{after}")
    ]  # fmt: skip


def _matching(pattern: str) -> list[str]:
    with _reading(pattern):
        if not remote(pattern):
            place = local_path(pattern)
            if place.is_dir():
                return sorted(str(tar) for tar in place.glob("*.tar") if not tar.name.startswith("."))
            return sorted(glob(str(place))) if has_magic(str(place)) and not place.exists() else [str(place)]
        files, path = _file_system(pattern)
        if (path.endswith(".tar") and not has_magic(path)) or ".tar?" in path:
            return [pattern]
        found = files.glob(path) if has_magic(path) else files.ls(path, detail=False)
        return sorted(str(files.unstrip_protocol(name)) for name in found if str(name).endswith(".tar"))


def _read_far(address: str, start: int, end: int) -> bytes:
    """A range, tried again after faults that may pass."""
    for left in reversed(range(TRIES)):
        try:
            with _reading(address):
                files, path = _file_system(address)
                return bytes(files.cat_file(path, start=start, end=end))
        except InputError as error:
            if not left or isinstance(error.__cause__, (FileNotFoundError, PermissionError)):
                raise
            time.sleep(0.5 * 2 ** (TRIES - 1 - left))
    raise InputError(f"{address} cannot be read")  # the loop has returned or raised


@contextmanager
def _reading(address: str) -> Iterator[None]:
    """Whatever a file system raises becomes one InputError that names the address."""
    try:
        yield
    except DigsegError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{address}: file not found; check the address") from error
    except Exception as error:  # every protocol has its own
        why = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{address} cannot be read: {why}; check the address, the network and your rights") from error


@cache
def _protocol(protocol: str) -> None:
    """Raises MissingPackageError, with what to install, where fsspec or the protocol's own package lacks."""
    require("data at addresses such as s3://bucket/set", "remote")
    from fsspec import get_filesystem_class

    try:
        get_filesystem_class(protocol)
    except ImportError as error:
        raise MissingPackageError(f"addresses of {protocol}:// need another package: {error}") from error
    except ValueError as error:
        raise InputError(f"{protocol}:// is no kind of address that fsspec knows: {error}") from error


def _file_system(address: str) -> tuple[Any, str]:
    """fsspec's file system of an address (fsspec keeps one for each), and the path in it."""
    _protocol(address.partition("://")[0])
    from fsspec.core import url_to_fs

    files, path = url_to_fs(address)
    return files, str(path)
