"""Test data as numbered samples: the fixed test scenes of a domain (in several wordings), or a folder of labelled pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from digseg_engine.data.checks import HELD_OUT
from digseg_engine.data.datasets import IGNORE, dataset_splits, open_dataset
from digseg_engine.data.query import Query
from digseg_engine.data.shards import is_data
from digseg_engine.errors import UsageError
from digseg_engine.evaluation.predictors import Predict, Rule
from digseg_engine.worlds.scenes import ALL_PAIRS, CLASSES, is_scenes, scene

TEST_SEED, VALIDATION_SEED = 1_000_000, 2_000_000  # numbers of the first scenes; training's begin at 0
EVERY = 0  # the count that means all pictures of a folder
OVERLAPPING = ("microscopy",)  # a nucleus is part of its cell
REWORDED = "the {shape} that is {colour}"  # a wording that no training prompt has


@dataclass(frozen=True)
class Sample:
    """One labelled picture: a mask per query, or where labels are exclusive a label map, which says the same."""

    name: str
    image: NDArray[np.uint8]  # [H, W, 3]
    masks: NDArray[np.bool_] | None = None  # [K, H, W], one per query
    valid: NDArray[np.bool_] | None = None  # [H, W], False where pixels do not count
    labels: NDArray[np.int16] | None = None  # [H, W], number of the query, negative where it is none
    count: int = 0  # K, for labels

    @property
    def truth(self) -> NDArray[np.bool_]:
        """The mask of every query, [K, H, W]."""
        if self.masks is not None:
            return self.masks
        return np.asarray(np.asarray(self.labels) == np.arange(self.count, dtype=np.int16)[:, None, None])


class Samples(Protocol):
    """A test set: sample `i` is always the same."""

    @property
    def name(self) -> str: ...

    @property
    def queries(self) -> Sequence[Query]: ...

    @property
    def rule(self) -> Rule:
        """How logits become masks."""

    @property
    def notes(self) -> Sequence[str]:
        """What must be said beside the figures."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Sample: ...


@dataclass(frozen=True)
class Trial:
    """A test set asked of one predictor; `name` is that of the set, and says which predictor where there are several."""

    name: str
    samples: Samples
    predict: Predict


class TestScenes:
    """Test scenes 0..count-1 of a domain at size x size pixels; every prompt is asked about every picture.

    first: number of the first scene, split: "test", or "train" for scenes painted as training's are.
    """

    __test__ = False  # not a test case, whatever the name says

    def __init__(
        self, domain: str, count: int, size: int, reworded: bool = False, first: int = TEST_SEED, split: str = "test"
    ) -> None:
        if count < 1:
            raise UsageError(f"the number of test scenes must be at least 1, got {count}")
        self.domain, self.count, self.size, self.first, self.split = domain, count, size, first, split
        self.name = f"{domain}, reworded" if reworded else domain
        self.notes: list[str] = []
        self.queries = scene_queries(domain, reworded)
        self.rule: Rule = "each" if domain in OVERLAPPING else "strongest or none"

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Sample:
        picture = scene(self.first + i, self.domain, self.size, self.split)
        truth = np.stack([picture.mask(query.name) for query in self.queries])
        return Sample(f"{self.domain}-{i:04d}", picture.image, truth)


class LabelledPictures:
    """Pictures of a folder (see `data.datasets`), every class asked about every picture.

    Of more than `count` pictures a random choice is taken, the same one for the same seed: the first of a list are often
    of one place or one day.
    """

    def __init__(
        self, folder: Path | str, count: int = EVERY, layout: str | None = None, split: str | None = None, seed: int = 0
    ) -> None:
        if count < 0:
            raise UsageError(f"the number of pictures must be at least 1, or {EVERY} for all, got {count}")
        chosen = split or held_out_split(folder, layout)
        self.dataset = open_dataset(folder, layout, chosen)
        self.name = f"{self.dataset.layout.name} {self.dataset.split}"
        whole = len(self.dataset)
        self.numbers = np.sort(np.random.default_rng(seed).permutation(whole)[: count or whole]).tolist()
        self.notes: list[str] = []
        if len(self.numbers) < whole:
            chosen_by = "always the same" if seed == 0 else f"that of seed {seed}"
            self.notes.append(f"{self.name}: a random choice of {count} of {whole} pictures, {chosen_by}")
        if split is None and not held_out(chosen):
            self.notes.append(f"{self.name}: no split of {folder} is held out for scoring; these pictures may have been trained "
                              "on, and figures on them say little about others")  # fmt: skip
        self.queries = self.dataset.queries
        table = self.dataset.table
        open_ground = bool(table.background or table.background_colours)  # some pixels are none of the classes
        self.rule: Rule = "each" if len(self.queries) == 1 else "strongest or none" if open_ground else "strongest"

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: int) -> Sample:
        item = self.dataset[self.numbers[i]]
        valid = item.ids != IGNORE
        return Sample(item.name, item.image, None, valid, item.ids, len(self.queries))


def held_out(split: str) -> bool:
    """Is a split of this name kept out of training?"""
    return split.lower() != "all" and not split.lower().startswith("train")


def held_out_split(folder: Path | str, layout: str | None) -> str:
    """The split of a folder that is meant for scoring: its validation or test split, else any that is no training split,
    else what there is."""
    splits = dataset_splits(folder, layout)
    named = {name.lower(): name for name in reversed(splits)}
    return next((named[name] for name in HELD_OUT if name in named), next(filter(held_out, splits), splits[0]))


def scene_queries(domain: str, reworded: bool = False) -> list[Query]:
    """The prompts of a domain; `reworded` says the pairs of `objects` as training never did."""
    if domain != "objects":
        return [Query(name, name) for name in CLASSES[domain]]
    if not reworded:
        return [Query(pair, pair) for pair in ALL_PAIRS]
    split = [pair.split(" ") for pair in ALL_PAIRS]
    return [Query(REWORDED.format(colour=colour, shape=s), f"{colour} {s}") for colour, s in split]


def open_samples(
    data: str, count: int, size: int, layout: str | None = None, split: str | None = None, seed: int = 0
) -> list[Samples]:
    """Test sets named by `data`: "scenes", "scenes:DOMAIN,..." or a folder of labelled pictures.

    count: scenes per domain, or at most so many pictures of a folder, a random choice by `seed`, or EVERY one. Raises
    UsageError or InputError.
    """
    if is_scenes(data):
        from digseg_engine.worlds.sources import parse_domains

        if layout or split:
            raise UsageError("--layout and --split describe a folder of labelled pictures; --data is scenes here")
        if seed:
            raise UsageError("--seed chooses pictures of a folder; the test scenes are fixed")
        if count == EVERY:
            raise UsageError("--count all means the pictures of a folder; of scenes there is no end, so give a number")
        sets: list[Samples] = []
        for domain in parse_domains(data):
            sets.append(TestScenes(domain, count, size))
            if domain == "objects":
                sets.append(TestScenes(domain, count, size, reworded=True))
        return sets
    if not is_data(data):
        raise UsageError(
            f"--data must be scenes, scenes:DOMAIN,..., a folder of labelled pictures or shards, got {data!r}"
        )
    return [LabelledPictures(data, count, layout, split, seed)]
