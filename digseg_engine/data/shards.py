"""Labelled pictures in shards: plain tar files of samples KEY.jpg + KEY.mask.png, as WebDataset lays them out.

A member is read by its place, from this machine or by a range from afar, so that any picture can be had at any time and the
order of reading is the loader's to choose. Torch-free.
"""

from __future__ import annotations

import io
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Container, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, overload

import numpy as np
from numpy.typing import NDArray

from digseg_engine.data.checks import HELD_OUT
from digseg_engine.data.classes import EXAMPLE, composed, parse_classes
from digseg_engine.data.layouts import CLASSES_FILE, SHARDS, Layout, Record
from digseg_engine.data.shard_cache import ShardCache
from digseg_engine.data.shard_index import BLOCK, Place, check_header, index_of
from digseg_engine.data.storage import Blob, beside, expand, find_blob, local_path, read_text, remote
from digseg_engine.errors import InputError, UsageError
from digseg_engine.reading import SUFFIXES as PICTURES

MASKS = ("mask", "seg")  # KEY.mask.png; KEY.seg.png is taken too
MASK_SUFFIXES = (*PICTURES, ".mat")
NUMBER = re.compile(r"[-_.]?\d+$")  # at the end of a shard's name: train-000012
KEPT_BYTES = 64 << 20  # of samples that were read last: mask, headers and pixels are asked for one after another
DOT = "%2E"  # a dot in a picture's name, where a dot ends the key
OPENERS = 8  # shards whose indexes are read at a time


def is_shards(data: Path | str) -> bool:
    """Do the data mean shards: an address, a .tar file or pattern, or a folder of .tar files and classes.json?"""
    text = str(data)
    if "://" in text or text.endswith(".tar"):
        return True
    path = Path(text)
    own = (path / CLASSES_FILE).is_file() and not (path / "images").is_dir()
    return own and any(path.glob("*.tar"))


@dataclass(frozen=True, eq=False)
class Shard:
    """One tar file: its members, and for every sample the numbers of its picture and its mask (-1: it has none)."""

    blob: Blob
    members: list[Place]
    keys: list[str]
    pairs: NDArray[np.int32]  # [N, 2]
    strays: list[str]  # masks without a picture

    @property
    def name(self) -> str:
        """The address, without the signature that a signed one ends in."""
        return self.blob.address.partition("?")[0] if self.blob.remote else self.blob.address


class Member:
    """A file inside a shard; what a path does for a file on disk it does for the readers of pictures and masks."""

    def __init__(self, store: Store, shard: int, sample: int, part: int) -> None:
        self._store, self.at = store, (shard, sample, part)

    @property
    def _place(self) -> Place | None:
        shard, sample, part = self.at
        number = int(self._store.shards[shard].pairs[sample, part])
        return None if number < 0 else self._store.shards[shard].members[number]

    @property
    def name(self) -> str:
        shard, sample, _ = self.at
        return self._place.name if self._place else f"{self._store.shards[shard].keys[sample]}.mask.png"

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix

    def __str__(self) -> str:
        return f"{self._store.shards[self.at[0]].name}: {self.name}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Member) and self.state == other.state

    def __hash__(self) -> int:
        return hash(self.state)

    @property
    def state(self) -> str:
        """What tells this file from every other one, and from itself when it was changed."""
        blob = self._store.shards[self.at[0]].blob
        return f"{blob.address}/{blob.size}/{blob.stamp}/{self.name}"

    def exists(self) -> bool:
        return self._place is not None

    def is_file(self) -> bool:
        return self._place is not None

    def length(self) -> int:
        """Bytes."""
        return self._place.size if self._place else 0

    def open(self, mode: Literal["rb"] = "rb") -> BinaryIO:
        """The member's bytes as a file. Raises InputError naming shard and member."""
        if self._place is None:
            raise InputError(f"{self} is not in the shard; write the shard again")
        return io.BytesIO(self._store.read(self.at))


class Store:
    """Reads samples of shards, each by one range, and keeps those that were read last."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = list(shards)
        self.cache: ShardCache | None = None  # of shards from afar that were copied to this machine
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, int], tuple[int, bytes]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"shards": self.shards, "cache": self.cache}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.shards, self.cache = state["shards"], state["cache"]
        self._begin()

    def read(self, at: tuple[int, int, int]) -> bytes:
        """The bytes of part 0 (picture) or 1 (mask) of a sample. Raises InputError naming shard and member."""
        number, sample, part = at
        shard = self.shards[number]
        place = shard.members[shard.pairs[sample, part]]
        start, body = self._sample(number, sample)
        offset = place.offset - start
        check_header(body[offset - BLOCK : offset], place, shard.name)
        return body[offset : offset + place.size]

    def _sample(self, number: int, sample: int) -> tuple[int, bytes]:
        """(first byte, bytes) of a sample, from the header of its first member on."""
        with self._lock:
            if (number, sample) in self._kept:
                self._kept.move_to_end((number, sample))
                return self._kept[number, sample]
        shard = self.shards[number]
        places = [shard.members[k] for k in shard.pairs[sample] if k >= 0]
        start = min(place.offset for place in places) - BLOCK
        end = max(place.offset + place.size for place in places)
        body = (self.cache.nearest(shard.blob) if self.cache else shard.blob).read(start, end)
        with self._lock:
            self._kept[number, sample] = start, body
            while len(self._kept) > 1 and sum(len(kept) for _, kept in self._kept.values()) > KEPT_BYTES:
                self._kept.popitem(last=False)
        return start, body


class ShardRecords(Sequence[Record]):
    """The records of some shards in order, each made when it is asked for: millions of them take no room."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.store = Store(shards)
        self.starts = np.cumsum([0, *(len(shard.keys) for shard in shards)])  # number of every shard's first picture

    def __len__(self) -> int:
        return int(self.starts[-1])

    @overload
    def __getitem__(self, i: int) -> Record: ...
    @overload
    def __getitem__(self, i: slice) -> list[Record]: ...
    def __getitem__(self, i: int | slice) -> Record | list[Record]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        i = range(len(self))[i]
        shard = int(np.searchsorted(self.starts, i, side="right")) - 1
        sample = i - int(self.starts[shard])
        key = self.store.shards[shard].keys[sample]
        return Record(key, Member(self.store, shard, sample, 0), Member(self.store, shard, sample, 1))

    @property
    def remote(self) -> bool:
        return any(shard.blob.remote for shard in self.store.shards)

    def expect(self, shards: Sequence[int]) -> None:
        """Say which shards are read now and next, so that copies of them are made on this machine."""
        if self.store.cache is not None:
            self.store.cache.expect([self.store.shards[n].blob for n in dict.fromkeys(shards)])

    def strays(self) -> list[str]:
        """A line for every mask without a picture."""
        return [line for shard in self.store.shards for line in shard.strays]

    def without_mask(self) -> list[Record]:
        missing = [self.starts[n] + np.flatnonzero(s.pairs[:, 1] < 0) for n, s in enumerate(self.store.shards)]
        return [self[int(i)] for i in np.concatenate(missing)]


def shard_splits(data: str) -> dict[str, list[str]]:
    """Addresses of the shards of every split, by the shards' names: train-000.tar and val-000.tar are splits, any other names
    one undivided set, "all". Raises InputError when there is no shard."""
    addresses = expand(data)
    strange = [address for address in addresses if not address.partition("?")[0].endswith(".tar")]
    if strange:
        raise InputError(f"{strange[0]} is no .tar file; expected shards, plain tar files that are not compressed")
    named: dict[str, list[str]] = {}
    for address in addresses:
        stem = address.partition("?")[0].rpartition("/")[2].removesuffix(".tar")
        named.setdefault(_split_of(stem), []).append(address)
    return named if any(_known_split(name) for name in named) else {"all": addresses}


def _split_of(stem: str) -> str:
    """ "city-train-000012" -> "train"; "city-000012" -> "city"."""
    name = NUMBER.sub("", stem)
    last = re.split(r"[-_.]", name)[-1]
    return last if _known_split(last) else name


def _known_split(name: str) -> bool:
    return name.lower() in HELD_OUT or name.lower().startswith("train")


def shard_layout(data: str, splits: dict[str, list[str]]) -> Layout:
    """The layout of shards: the table of classes.json beside them. Raises InputError when it is missing or wrong."""
    source = beside(next(iter(splits.values()))[0], CLASSES_FILE)
    text = read_text(source)
    if text is None:
        raise InputError(f"{source} not found; expected a {CLASSES_FILE} beside the shards, such as {EXAMPLE}")
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source} is not JSON: {error}; expected something like {EXAMPLE}") from error
    return Layout(SHARDS, data, parse_classes(body, source), dict.fromkeys(splits, ()))


def open_shard_records(splits: Sequence[Sequence[str]]) -> ShardRecords:
    """All samples of shards, in the shards' order and within each as they lie; of a sample in two splits the first.

    splits: addresses of shards. Raises InputError naming what is damaged, samples with two pictures or two masks, and samples
    that a split has twice."""
    with ThreadPoolExecutor(OPENERS) as pool:
        shards = [list(pool.map(lambda address: open_shard(find_blob(address)), addresses)) for addresses in splits]
    before: dict[str, str] = {}
    for number, split in enumerate(shards):
        seen: dict[str, str] = {}
        for shard in split:
            for key in shard.keys:
                if seen.setdefault(key, shard.name) != shard.name:
                    raise InputError(f"{shard.name}: sample {key} is in {seen[key]} too; expected every sample once; write one "
                                     "of the shards again")  # fmt: skip
        shards[number] = [_without(shard, before) for shard in split]
        before |= seen
    return ShardRecords([shard for split in shards for shard in split if shard.keys])


def _without(shard: Shard, seen: Container[str]) -> Shard:
    """The shard less the samples that were seen before."""
    kept = [n for n, key in enumerate(shard.keys) if key not in seen]
    if len(kept) == len(shard.keys):
        return shard
    return replace(shard, keys=[shard.keys[n] for n in kept], pairs=shard.pairs[kept])


def open_shard(blob: Blob) -> Shard:
    """The samples of one shard: members of one key, which is all before the first dot of the name."""
    members = index_of(blob)
    samples: dict[str, list[int]] = {}  # key -> numbers of picture and mask
    for number, place in enumerate(members):
        folder, slash, name = place.name.removeprefix("./").rpartition("/")
        key, dot, ending = name.partition(".")
        part = _part(f"{dot}{ending}".lower())
        if part is None or not key:  # a hidden file, or of a kind that is not read
            continue
        pair = samples.setdefault(composed(f"{folder}{slash}{key}".replace(DOT, ".")), [-1, -1])
        if pair[part] >= 0:
            raise InputError(f"{blob.address}: {place.name} and {members[pair[part]].name} are two {('pictures', 'masks')[part]} "
                             "of one sample; expected one; write the shard again")  # fmt: skip
        pair[part] = number
    strays = [f"{blob.address}: {members[mask].name} has no picture; expected one in the same shard"
              for picture, mask in samples.values() if picture < 0]  # fmt: skip
    whole = {key: pair for key, pair in samples.items() if pair[0] >= 0}
    return Shard(blob, members, list(whole), np.array(list(whole.values()), np.int32).reshape(-1, 2), strays)


def _part(ending: str) -> int | None:
    """0 for a picture, 1 for a mask, None for what is neither, by all that follows the key."""
    if ending in PICTURES:
        return 0
    return 1 if any(ending == f".{mask}{suffix}" for mask in MASKS for suffix in MASK_SUFFIXES) else None


def check_layout_name(data: str, layout: str | None) -> None:
    """Raises UsageError for a layout asked for by name: shards have one."""
    if layout not in (None, SHARDS):
        raise UsageError(f"{data} means shards, which have one layout, got --layout {layout}; leave it out (digseg data FOLDER "
                         "--pack writes shards from a folder of any layout)")  # fmt: skip


def is_data(data: str) -> bool:
    """Is there a folder, or are these shards (whether they can be read is told when they are opened)?"""
    return is_shards(data) or local_path(data).is_dir()


__all__ = ["Member", "ShardRecords", "check_layout_name", "is_data", "is_shards", "open_shard_records", "remote",
           "shard_layout", "shard_splits"]  # fmt: skip
