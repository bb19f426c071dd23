"""Labelled pictures: `open_dataset(data)` for own data, the layouts of well-known data sets, and shards of either.

A data set is a numbered list of (picture, class of every pixel, name), always in the same order. Torch-free.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from digseg_engine.data.checks import check_marks
from digseg_engine.data.classes import BACKGROUND, IGNORE, ClassTable
from digseg_engine.data.layouts import Layout, Part, Record, find_layout, layout_names, list_records, stray_masks
from digseg_engine.data.masks import Ids, read_mask
from digseg_engine.data.query import Query
from digseg_engine.data.shards import (
    ShardRecords,
    check_layout_name,
    is_shards,
    open_shard_records,
    shard_layout,
    shard_splits,
)
from digseg_engine.data.turning import shown_shape, upright_mask
from digseg_engine.errors import InputError, UsageError
from digseg_engine.images import decode, read_image, to_rgb

__all__ = ["BACKGROUND", "IGNORE", "Dataset", "Item", "dataset_splits", "layout_names", "open_dataset"]


class Item(NamedTuple):
    """One labelled picture at its own resolution."""

    image: NDArray[np.uint8]  # [H, W, 3] RGB
    ids: Ids  # [H, W] int16: index into the names, IGNORE (-1) or BACKGROUND (-2: none of the names)
    name: str


class Dataset:
    """The pictures of one split; item `i` is always the same. Items raise InputError naming the file at fault."""

    def __init__(self, layout: Layout, root: Path | str, split: str, records: Sequence[Record]) -> None:
        self.layout, self.root, self.split, self.records = layout, root, split, records

    @property
    def table(self) -> ClassTable:
        return self.layout.table

    @property
    def names(self) -> tuple[str, ...]:
        """Class names, in the order that `Item.ids` counts them."""
        return self.table.names

    @property
    def queries(self) -> tuple[Query, ...]:
        """The plain prompt of every class, in the same order."""
        return self.table.queries

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> Item:
        image = read_image(self.records[i].image)
        return Item(image, self._ids_of(i, image.shape[:2]), self.records[i].name)

    def read_ids(self, i: int) -> Ids:
        """Class of every pixel of picture `i` as it is shown, [H, W], without decoding the picture."""
        return self._ids_of(i, shown_shape(self.records[i].image))

    def read_reduced(self, i: int, most: int) -> NDArray[np.uint8]:
        """Picture `i` at 1/1, 1/2, 1/4 or 1/8 of its size, at most 1/`most`; only a JPEG is decoded smaller."""
        path = self.records[i].image
        if most < 2 or path.suffix.lower() not in (".jpg", ".jpeg"):
            return read_image(path)
        return decode(path, to_rgb, reduce=most)

    def _ids_of(self, i: int, shown: tuple[int, ...]) -> Ids:
        record = self.records[i]
        if not record.mask.is_file():
            raise missing_mask(record)
        height, width = shown
        ids = upright_mask(read_mask(record.mask, self.table), (height, width), record.image, record.mask, self.table)
        if ids.shape != (height, width):
            raise InputError(f"{record.mask} is {ids.shape[1]}x{ids.shape[0]} pixels, but its picture {record.image} is "
                             f"{width}x{height}; a mask must have its picture's size")  # fmt: skip
        return ids

    def stray_masks(self) -> list[str]:
        """A line for every mask of own data that has no picture."""
        if isinstance(self.records, ShardRecords):
            return self.records.strays()
        return stray_masks(self.layout, Path(self.root), self.split)


def open_dataset(path: Path | str, layout: str | None = None, split: str = "train", strict: bool = True) -> Dataset:
    """Open a folder of labelled pictures, or shards: a folder, pattern or address of .tar files (`data.shards`).

    layout: "folder" for own data (images/, masks/, classes.json) or one of `layout_names()`; None recognises it. split:
    one of `dataset_splits`, or "all" for the pictures of all splits; "train" of an undivided data set is all of it.
    strict: a picture without a mask, and masks of 0 and 255 whose 255 nobody explained, are errors now, not later.
    Raises InputError or UsageError saying what was looked for, and the first file that is missing.
    """
    if is_shards(path):
        return _open_shards(str(path), layout, split, strict)
    found, root = find_layout(Path(path), layout)
    if split == "train" and set(found.splits) == {"all"}:
        split = "all"
    available = [name for name in found.splits if _parts(found, name, root)]
    if split != "all" and split not in available:
        choice = ", ".join(dict.fromkeys([*available, "all"]))
        raise UsageError(f"{path} ({found.name}) has no split {split!r}; expected one of {choice}")
    names = [split] if split in available else available
    records: dict[object, Record] = {}  # a picture that fits two descriptions of its place is one picture
    for name in names:
        for part in _parts(found, name, root):
            for record in list_records(part, root):
                records.setdefault(record.image, record)
    if not records:
        parts = "; ".join(str(part) for name in names for part in found.splits[name])
        raise InputError(f"{root} holds no picture for split {split!r}; expected some in {parts}")
    dataset = Dataset(found, root, split, list(records.values()))
    if strict:
        _check_files(dataset)
        check_marks(dataset)
    return dataset


def dataset_splits(path: Path | str, layout: str | None = None) -> tuple[str, ...]:
    """The splits of a folder or of shards that are there; ("all",) for an undivided set."""
    if is_shards(path):
        check_layout_name(str(path), layout)
        return tuple(shard_splits(str(path)))
    found, root = find_layout(Path(path), layout)
    return tuple(name for name in found.splits if _parts(found, name, root))


def _open_shards(data: str, layout: str | None, split: str, strict: bool) -> Dataset:
    check_layout_name(data, layout)
    splits = shard_splits(data)
    if split == "train" and set(splits) == {"all"}:
        split = "all"
    if split != "all" and split not in splits:
        raise UsageError(f"{data} has no split {split!r}; expected one of {', '.join(dict.fromkeys([*splits, 'all']))}")
    found = shard_layout(data, splits)
    records = open_shard_records([splits[split]] if split in splits else list(splits.values()))
    if not len(records):
        raise InputError(f"{data} holds no picture; expected samples KEY.jpg with KEY.mask.png in the .tar files")
    dataset = Dataset(found, data, split, records)
    if strict:
        if without := records.without_mask():
            raise missing_mask(without[0], len(without), len(records))
        check_marks(dataset)
    return dataset


def _parts(layout: Layout, split: str, root: Path) -> list[Part]:
    return [part for part in layout.splits[split] if part.present(root)]


def _check_files(dataset: Dataset) -> None:
    """Raises InputError for the first listed picture or mask that is not there."""
    gone = [record.image for record in dataset.records if not record.image.is_file()]
    if gone:
        raise InputError(f"{gone[0]} is listed in split {dataset.split!r} but not there ({len(gone)} of {len(dataset)} "
                         "pictures are missing); add it or take it off the list")  # fmt: skip
    without = [record for record in dataset.records if not record.mask.is_file()]
    if without:
        raise missing_mask(without[0], len(without), len(dataset))


def missing_mask(record: Record, missing: int = 1, of: int = 1) -> InputError:
    more = f" ({missing} of {of} pictures have none)" if missing > 1 else ""
    return InputError(f"{record.image} has no mask; expected {record.mask}{more}; add it or remove the picture")
