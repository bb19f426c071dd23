"""Pictures and prompts of the user's own, to verify and to calibrate with: a labelled folder, or pictures and `prompts.txt`.

A checkpoint's record names the data it was trained on; where that folder is still there, an export takes it by itself, since
painted scenes say little about a model that was fine-tuned on something else.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digseg_engine.data.datasets import dataset_splits, open_dataset
from digseg_engine.data.layouts import recognise
from digseg_engine.data.shares import Share, parse_shares
from digseg_engine.errors import DigsegError, InputError, UsageError
from digseg_engine.images import read_image

MAX_PICTURES = 256
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
HELD_OUT = ("val", "valid", "validation", "test")
STRANGERS = ("zebra", "lighthouse", "teapot")  # asked about every picture beside its own words


@dataclass(frozen=True)
class PromptedPicture:
    """One picture and the prompts about it, those of what is labelled in it first: the first `labelled` of them."""

    path: Path
    prompts: tuple[str, ...]
    labelled: int = 0

    def read(self) -> NDArray[np.uint8]:
        """[H, W, 3]. Raises InputError naming the file."""
        return read_image(self.path)


@dataclass(frozen=True)
class OwnPictures:
    """`origin` says in words where they come from, for the manifest."""

    examples: tuple[PromptedPicture, ...]
    origin: str


def own_pictures(folder: Path, count: int = MAX_PICTURES, prompts: int = 5, held_out: bool = True) -> OwnPictures:
    """At most `count` pictures, evenly chosen, each with `prompts` prompts of which the last is of nothing in any of them.

    held_out: of a labelled folder the validation or test split (False: the training split), where it is divided.
    Raises InputError for a folder without pictures or prompts, or a data set that is not sound.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} not found; expected a folder of labelled pictures, or pictures and prompts.txt")
    if (folder / "prompts.txt").is_file():
        return _plain(folder, count, prompts)
    try:
        recognise(folder)
    except DigsegError as error:
        raise InputError(
            f"{folder} has no prompts.txt (one prompt a line) and is no labelled data set ({error})"
        ) from error
    return _labelled(folder, count, prompts, held_out)


def own_mixture(
    folders: Sequence[Path], count: int = MAX_PICTURES, prompts: int = 5, held_out: bool = True
) -> OwnPictures:
    """`own_pictures` of several folders in turns, of each an equal part of `count` and one at least. Raises as that does."""
    parts = [own_pictures(folder, max(1, count // len(folders)), prompts, held_out) for folder in folders]
    turns = zip_longest(*(part.examples for part in parts))
    examples = tuple(example for turn in turns for example in turn if example is not None)
    return OwnPictures(examples, "; ".join(part.origin for part in parts))


def check_folders(*folders: Path) -> None:
    """Raises InputError for the first folder that cannot be used, before any work is done."""
    for folder in folders:
        own_pictures(folder, 1)


def _plain(folder: Path, count: int, prompts: int) -> OwnPictures:
    files = sorted(
        path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )
    lines = (folder / "prompts.txt").read_text(encoding="utf-8").splitlines()
    words = [line.strip() for line in lines if line.strip()]
    if not files or not words:
        raise InputError(f"{folder} has {len(files)} pictures and {len(words)} prompts; expected at least one of each "
                         "(prompts.txt: one prompt a line)")  # fmt: skip
    chosen = evenly(files, count)
    examples = [
        PromptedPicture(path, fill([*words[i % len(words) :], *words], prompts)) for i, path in enumerate(chosen)
    ]
    return OwnPictures(tuple(examples), f"{len(chosen)} pictures and {len(words)} prompts of {folder.name}")


def _labelled(folder: Path, count: int, prompts: int, held_out: bool) -> OwnPictures:
    splits = dataset_splits(folder)
    split = next((name for name in HELD_OUT if name in splits), "all") if held_out else "train"
    dataset = open_dataset(folder, split=split)
    texts = [query.text for query in dataset.table.queries]
    examples = []
    for i in evenly(range(len(dataset)), count):
        ids, areas = np.unique(dataset.read_ids(i), return_counts=True)
        present = [int(k) for k in ids[np.argsort(-areas)] if k >= 0]
        others = [k for k in range(len(texts)) if k not in present]
        asked = fill([texts[k] for k in (*present, *others)], prompts)
        labelled = min(len({texts[k] for k in present}), prompts - 1)
        examples.append(PromptedPicture(dataset.records[i].image, asked, labelled))
    return OwnPictures(tuple(examples), f"{len(examples)} pictures of {folder.name} ({split}), asked for its classes")


def fill(words: Sequence[str], count: int) -> tuple[str, ...]:
    """`count` prompts: words, then strangers, none of which is one of the words; at least one stranger."""
    known = list(dict.fromkeys(words))
    strangers = [word for word in STRANGERS if word not in known] or list(STRANGERS[-1:])
    return tuple([*known[: count - 1], *(strangers * count)][:count])


def evenly(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of them, from the whole range."""
    if len(items) <= count:
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def shares_of(checkpoint: Path) -> tuple[Share, ...]:
    """The data that the checkpoint's record says it was trained on; none without a record that can be read."""
    record = checkpoint / "training" / "train.json"
    try:
        return parse_shares(json.loads(record.read_text(encoding="utf-8"))["data"])
    except (UsageError, AttributeError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return ()


def trained_on(checkpoint: Path) -> tuple[Path, ...]:
    """The folders that the checkpoint's record says it was trained on, as far as they are (still) there."""
    return tuple(Path(share.data) for share in shares_of(checkpoint) if Path(share.data).is_dir())
