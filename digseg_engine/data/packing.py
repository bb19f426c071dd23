"""Shards from any data set that is read here: samples KEY.jpg + KEY.mask.png in plain tar files, with indexes and classes.json.

Files of pictures and masks are copied as they are, so that what is read from shards is what is read from the folder, bit by
bit. A WebDataset reader takes them too. Torch-free.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from digseg_engine.data.classes import table_json
from digseg_engine.data.datasets import Dataset
from digseg_engine.data.layouts import CLASSES_FILE, Record
from digseg_engine.data.shard_index import SUFFIX, Place, write_index
from digseg_engine.data.shards import DOT
from digseg_engine.errors import InputError
from digseg_engine.files import replacing, write_json
from digseg_engine.folders import Mark, others, writing

PAD = 2 * tarfile.BLOCKSIZE  # a header and, on average, what fills up the last block


def foreign(folder: Path) -> str:
    """What in a folder is none of our shards; "" when all of it is."""
    if not (folder / CLASSES_FILE).is_file() or not any(folder.glob(f"*.tar{SUFFIX}")):
        return "it holds no shards of an earlier packing"
    names = [
        CLASSES_FILE,
        *(path.name for path in folder.glob("*.tar")),
        *(path.name for path in folder.glob(f"*.tar{SUFFIX}")),
    ]
    strange = others(folder, names)
    return f"it holds {strange[0]}" if strange else ""


SHARD_FOLDER = Mark("a folder of shards", CLASSES_FILE, foreign)


def pack(
    splits: dict[str, Dataset], target: Path, shard_bytes: int, shuffle: int | None = None,
    tick: Callable[[], None] = lambda: None,
) -> list[Path]:  # fmt: skip
    """Write all pictures of the splits as shards of about `shard_bytes` each into the folder `target`, all or nothing.

    shuffle: seed of a random order within every split; None keeps the data set's. An undivided set ("all") becomes
    shard-000000.tar and so on, others train-000000.tar, ... Returns the shards. Raises InputError for a file that cannot be read,
    UsageError for a target that holds anything but shards of an earlier packing.
    """
    names: list[str] = []
    first = next(iter(splits.values()))
    with writing(target, SHARD_FOLDER) as draft:
        for split, dataset in splits.items():
            order = (
                range(len(dataset))
                if shuffle is None
                else np.random.default_rng(shuffle).permutation(len(dataset)).tolist()
            )
            groups = _grouped([dataset.records[i] for i in order], shard_bytes)
            for number, records in enumerate(groups):
                path = draft / f"{'shard' if split == 'all' else split}-{number:06d}.tar"
                places = _write_shard(path, records, tick)
                write_index(path.with_name(path.name + SUFFIX), path.stat().st_size, places)
                names.append(path.name)
        write_json(draft / CLASSES_FILE, table_json(first.table, own=first.layout.own))
    return [target / name for name in names]


def _grouped(records: Sequence[Record], shard_bytes: int) -> Iterator[list[Record]]:
    group: list[Record] = []
    size = 0
    for record in records:
        length = sum(_length(file) + PAD for file in (record.image, record.mask))
        if group and size + length > shard_bytes:
            yield group
            group, size = [], 0
        group.append(record)
        size += length
    yield group


def _length(file: Any) -> int:
    try:
        return int(file.stat().st_size if isinstance(file, Path) else file.length())
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}; add it or remove its picture") from error


def _write_shard(path: Path, records: Sequence[Record], tick: Callable[[], None]) -> list[Place]:
    """One tar file of these samples; the same files give the same bytes."""
    places: list[Place] = []
    with replacing(path) as draft, tarfile.open(draft, "w", format=tarfile.PAX_FORMAT) as tar:
        for record in records:
            folder, slash, name = record.name.rpartition("/")
            key = f"{folder}{slash}{name.replace('.', DOT)}"
            for ending, file in (("", record.image), (".mask", record.mask)):
                with file.open("rb") as source:
                    body = source.read()
                member = tarfile.TarInfo(f"{key}{ending}{file.suffix.lower()}")
                member.size = len(body)
                tar.addfile(member, io.BytesIO(body))
                places.append(
                    Place(member.name, tar.offset - -(-len(body) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE, len(body))
                )
            tick()
    return places
