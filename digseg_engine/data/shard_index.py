"""What lies where in a shard: the members of a tar file with their places, so that each is read alone.

An index is read from the user's cache, else from `SHARD.tar.index` beside the shard (`digseg data --pack` writes it), else
made by walking over the tar file's headers. Torch-free.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from digseg_engine.cache import own_folder
from digseg_engine.data.storage import Blob, read_text
from digseg_engine.errors import InputError, OutputError
from digseg_engine.files import write_text

SUFFIX = ".index"  # behind the shard's own name
FORMAT = "digseg.shard/1"
BLOCK = tarfile.BLOCKSIZE


class Place(NamedTuple):
    """A member of a shard: its bytes are offset..offset + size, its header the block before."""

    name: str
    offset: int
    size: int


def index_of(blob: Blob) -> list[Place]:
    """All files in a shard, in order. Raises InputError naming the shard, and the byte or member that is wrong."""
    kept = _kept(blob)
    for text in (_read(kept), read_text(_beside(blob))):
        places = None if text is None else _parsed(text, blob.size)
        if places is not None:
            break
    else:
        places = scan(blob)
    if kept is not None and not kept.is_file():
        with suppress(OSError, OutputError):  # the next program scans again
            kept.parent.mkdir(exist_ok=True)
            write_index(kept, blob.size, places)
    return places


def write_index(path: Path, size: int, places: list[Place]) -> None:
    """size: of the shard, by which an index of another file is known."""
    write_text(path, json.dumps({"format": FORMAT, "bytes": size, "members": places}, ensure_ascii=False) + "\n")


def scan(blob: Blob) -> list[Place]:
    """The files in a shard from its headers. Raises InputError for one that is no whole, plain tar file."""
    places: list[Place] = []
    with blob.open() as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    if member.issparse() or not (member.isreg() or member.isdir()):
                        raise InputError(f"{blob.address}: member {member.name} is a link or no plain file; write the shard from "
                                         "the files themselves (tar --dereference)")  # fmt: skip
                    if member.isreg():
                        places.append(Place(member.name, member.offset_data, member.size))
                end = tar.offset
            file.seek(end)
            mark = file.read(BLOCK)
        except tarfile.TarError as error:
            where = f"after member {places[-1].name}" if places else "at its beginning"
            raise InputError(f"{blob.address} is no whole tar file: {error} {where}; expected a tar that is not compressed; "
                             "write it again") from error  # fmt: skip
    if len(mark) < BLOCK or mark.strip(b"\0"):
        where = f"after member {places[-1].name}" if places else "at its beginning"
        what = "ends without an end mark" if not mark else "holds no header where one is due"
        raise InputError(f"{blob.address} is damaged or cut short: it {what}, at byte {end} {where}; write it again")
    return places


def check_header(header: bytes, place: Place, address: str) -> None:
    """Raises InputError unless the block before a member says a member of this size."""
    try:
        found = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").size
    except tarfile.TarError:
        found = -1
    if found != place.size:
        raise InputError(f"{address}: {place.name} is not at byte {place.offset}; the shard is damaged, or was changed "
                         f"after its index; write it again, or delete {Path(address).name}{SUFFIX}")  # fmt: skip


def _beside(blob: Blob) -> str:
    head, mark, query = blob.address.partition("?") if blob.remote else (blob.address, "", "")
    return f"{head}{SUFFIX}{mark}{query}"


def _kept(blob: Blob) -> Path | None:
    """Where the index of a shard of these contents is kept; None without a cache, or when changes could not be told."""
    folder = own_folder(create=True)
    if folder is None or not blob.stamp:
        return None
    key = hashlib.sha256(f"{blob.address}\n{blob.size}\n{blob.stamp}".encode()).hexdigest()[:24]
    return folder / "shard-indexes" / f"{key}.json"


def _read(path: Path | None) -> str | None:
    try:
        return None if path is None else path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def _parsed(text: str, size: int) -> list[Place] | None:
    """The members that an index lists; None when it is of another shard, or none at all."""
    try:
        body: Any = json.loads(text)
        if body["format"] != FORMAT or body["bytes"] != size:
            return None
        places = [Place(str(name), int(offset), int(length)) for name, offset, length in body["members"]]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    sound = all(place.offset >= BLOCK and 0 <= place.size <= size - place.offset for place in places)
    return places if sound else None
