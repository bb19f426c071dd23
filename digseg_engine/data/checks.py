"""What a data set's labels say about themselves: mistakes that every single file hides and only their sum shows.

A mask of 0 and 255 whose 255 is ignored teaches nothing, and no file of it is wrong; so with a class that no picture
shows, or a split of empty masks. Every note names its cure. Torch-free.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from digseg_engine.data.classes import BACKGROUND, ClassTable
from digseg_engine.errors import InputError
from digseg_engine.images import SUFFIXES

if TYPE_CHECKING:
    from digseg_engine.data.datasets import Dataset

Counts = NDArray[np.int64]
SAMPLED = 16  # masks read whenever a data set is opened
READ = 400  # masks read before training begins
NAMED = 4  # pictures or classes that a note names
HELD_OUT = ("val", "valid", "validation", "dev", "test", "testing", "holdout", "heldout")  # best first
DARK = 32  # of 0..255: a picture that stays below it was hardly exposed, or holds fewer bits than its file


def label_counts(ids: NDArray[np.int16], classes: int) -> Counts:
    """Pixels of every class, of the background and ignored ones, [C + 2]."""
    counts = np.bincount((ids - BACKGROUND).ravel(), minlength=classes + 2)  # background, ignored, then the classes
    return np.concatenate([counts[2:], counts[:2]])


def check_marks(dataset: Dataset, most: int = SAMPLED) -> list[str]:
    """Read all masks, of more than `most` so many, evenly spread; returns notes on black and white ones among others.

    Raises InputError when all of those are black and white, and white is ignored by default."""
    if not dataset.layout.own or not assumes_white(dataset.table):
        return []
    numbers = sorted({round(i) for i in np.linspace(0, len(dataset) - 1, min(most, len(dataset))).tolist()})
    counts = np.stack([label_counts(dataset.read_ids(i), len(dataset.names)) for i in numbers])
    if problem := white_ignored(dataset.table, counts.sum(0)):
        raise InputError(problem)
    return white_among_others(dataset.table, counts, [dataset.records[i].name for i in numbers])


def assumes_white(table: ClassTable) -> bool:
    """Is 255 ignored without anybody having said so?"""
    return table.masks == "labels" and not table.own_ignore and 255 in table.ignore


def white_ignored(table: ClassTable, total: Counts) -> str | None:
    """The error for masks of 0 and 255 alone where 255 is ignored by default; total: `label_counts` of all masks."""
    marks = [*(label_class.ids for label_class in table.classes), table.background]
    present_values = np.flatnonzero(total[:-1])
    if not assumes_white(table) or not total[-1] or len(present_values) != 1 or 0 not in marks[int(present_values[0])]:
        return None
    share = 100 * total[-1] / total.sum()
    last = table.names[-1]
    return (f'{table.source}: the masks hold only 0 and 255, and 255 is ignored by default ({share:.0f} % of the pixels), so '
            f'that no other class ever occurs; for black and white masks of one class add "masks": "threshold" and name '
            f'that class alone, or give the class its value, such as {{"name": "{last}", "id": 255}} with "background": 0; '
            'if 255 is meant to be ignored, say "ignore": 255')  # fmt: skip


def white_among_others(table: ClassTable, counts: Counts, names: list[str]) -> list[str]:
    """A note on masks of 0 and 255 alone among masks of class numbers; counts [N, C + 2] and names [N] of sound pictures.

    A mask counts as black and white when its 255 is ignored by default, it shows one other label, the one of value 0, and
    masks of the same data set show another one too."""
    if not assumes_white(table) or not len(counts):
        return []
    marks = [*(label_class.ids for label_class in table.classes), table.background]
    zero = [k for k, values in enumerate(marks) if 0 in values]
    if not zero:
        return []
    shown = counts[:, :-1] > 0
    black = (counts[:, -1] > 0) & shown[:, zero[0]] & (shown.sum(1) == 1)
    if not black.any() or shown.any(0).sum() < 2:
        return []
    taught = (*table.names, "background")[zero[0]]
    return [f"the masks of {_count(black, names)} hold only 0 and 255 where others hold class numbers; 255 is ignored, so that "
            f"they teach nothing but {taught}: save them with the class's value, or say \"ignore\": 255 in {table.source} "
            "if 255 is meant to be ignored"]  # fmt: skip


def split_notes(table: ClassTable, splits: Mapping[str, tuple[Counts, list[str]]]) -> list[str]:
    """Notes on label counts [N, C + 2] and names [N] of the sound pictures of every split."""
    notes = [*_absent_classes(table, splits)]
    for split, (counts, names) in splits.items():
        n = len(names)
        if not n:
            continue
        classes = np.asarray(counts[:, :-2].any(1))
        labels = (counts[:, :-1] > 0).sum(1)
        alone = (labels == 1) & classes
        where = f"of split {split!r}" if len(splits) > 1 else "of the data set"
        if 2 * (~classes).sum() > n:
            notes.append(f"{_count(~classes, names)} {where} show none of the classes: are their masks empty by mistake? "
                         "Look at them in the PNG, label them, or take them off the split")  # fmt: skip
        if 2 * alone.sum() > n and counts.shape[1] > 3:
            notes.append(f"{_count(alone, names)} {where} hold one label only: are the other labels missing? "
                         "Look at them in the PNG; a picture of one label teaches no border")  # fmt: skip
        ignored: NDArray[np.bool_] = 2 * counts[:, -1] > counts.sum(1)
        if ignored.any():
            notes.append(f"{_count(ignored, names)} {where} are ignored for more than half: such pixels count nowhere; "
                         'if they are none of the classes, list their value under "background"')  # fmt: skip
    return notes


def _absent_classes(table: ClassTable, splits: Mapping[str, tuple[Counts, list[str]]]) -> list[str]:
    found: dict[str, list[bool]] = {
        split: np.asarray(counts[:, :-2].any(0)).tolist() for split, (counts, names) in splits.items() if names
    }
    if not found:
        return []
    anywhere = [any(column) for column in zip(*found.values())]

    notes = []
    if not all(anywhere):
        gone = [label_class for label_class, occurs in zip(table.classes, anywhere) if not occurs]
        marks = f" (id {', '.join(map(str, gone[0].ids))})" if gone[0].ids and table.masks == "labels" else ""
        names = [label_class.name for label_class in gone]
        notes.append(f"{_list(names)}{marks} never occurs: give it the value that the masks use, or "
                     f"take it out of {table.source}")  # fmt: skip
    for split, in_split in found.items():
        missing = [
            name for name, occurs, occurs_here in zip(table.names, anywhere, in_split) if occurs and not occurs_here
        ]
        if missing and split.lower() in HELD_OUT:
            notes.append(f"{_list(missing)} occurs in no picture of split {split!r}: no figure there will speak of it; move "
                         "some of its pictures there")  # fmt: skip
        elif missing:
            notes.append(f"{_list(missing)} occurs in no picture of split {split!r} but elsewhere: what trains on it learns "
                         "nothing of it; move some of its pictures there")  # fmt: skip
    return notes


def dark_note(dark: list[str], pictures: int) -> list[str]:
    """A note on pictures that use hardly any of the range 0..255."""
    if not dark:
        return []
    return [f"{len(dark)} of {pictures} pictures ({_list(dark)}) stay below {DARK} of 255: dark, or 10- to 14-bit values in a "
            "16-bit file; stretch them to the file's full range before training"]  # fmt: skip


def unread_files(folders: list[Path]) -> list[str]:
    """A note on files below the folders of pictures that are not read: hidden ones and kinds that are no picture here."""
    strange: Counter[str] = Counter()
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            inside = path.relative_to(folder).parts
            if path.is_dir():
                continue
            if any(part.startswith(".") for part in inside):
                strange["hidden"] += 1
            elif path.suffix.lower() not in SUFFIXES:
                strange[path.suffix.lower() or "without suffix"] += 1
    if not strange:
        return []
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(strange.items()))
    where = " and ".join(f"{folder}/" for folder in folders[:2])
    return [f"{sum(strange.values())} files in {where} are not read ({kinds}); convert pictures among them to PNG "
            "or JPEG, and give each its mask"]  # fmt: skip


def _count(chosen: NDArray[np.bool_], names: list[str]) -> str:
    return f"{int(chosen.sum())} of {len(names)} pictures ({_list([names[i] for i in np.flatnonzero(chosen)])})"


def _list(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
