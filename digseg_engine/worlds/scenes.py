"""Deterministic labelled pictures: training set, test set and demonstration in one generator.

`scene(seed, domain, size, split)` always returns the same pixels on the same machine. The six pairs in
`UNSEEN_PAIRS` are never drawn in the "train" split; photographs are cut from disjoint halves per split.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from digseg_engine.data.query import Query
from digseg_engine.errors import UsageError
from digseg_engine.worlds.domains import ALL_PAIRS, CLASSES, COLOURS, PAINTERS, SEEN_PAIRS, UNSEEN_PAIRS
from digseg_engine.worlds.painting import SHAPES, speckle

__all__ = [
    "ALL_PAIRS",
    "CLASSES",
    "DOMAINS",
    "SEEN_PAIRS",
    "UNSEEN_PAIRS",
    "Scene",
    "is_scenes",
    "phrase",
    "scene",
]

DOMAINS = tuple(PAINTERS)
SPLITS = ("train", "test", "demo")
LIGHT = (0.9, 1.08)  # how bright a picture is taken: a factor for all of it
NOISE = (0.005, 0.035)  # standard deviation of the camera's, in 0..1
PHRASED = 0.6  # share of training prompts that are said in other words than the canonical name
PLAIN = ("{}", "a {}", "the {}", "one {}", "some {}")
PAIRS = ("{c} {s}", "a {c} {s}", "the {c} {s}", "{s} in {c}", "a {s} coloured {c}", "{c} coloured {s}", "the {s}, {c}")
COLOUR_ONLY = ("{}", "anything {}", "something that is {}", "all that is {}", "{} things", "{} objects")
SHAPE_ONLY = ("{}", "a {}", "the {}", "any {}", "every {}", "{} of any colour")
SYNONYMS: dict[str, tuple[str, ...]] = {
    "nucleus": ("nuclei", "cell nucleus"),
    "cell": ("cells", "whole cell"),
    "lesion": ("lesions", "abnormal tissue"),
    "road": ("roads", "street"),
    "building": ("buildings", "houses"),
    "water": ("lake", "river"),
    "field": ("fields", "farmland"),
    "trees": ("tree", "wood"),
    "crop row": ("crop", "crop rows"),
    "weed": ("weeds", "weed plants"),
    "soil": ("bare soil", "ground"),
    "brick": ("bricks", "brick wall"),
    "grass": ("lawn", "grass texture"),
    "gravel": ("gravel stones", "small stones"),
}


@dataclass(frozen=True)
class Scene:
    """One labelled picture. `ids` is 0 where nothing is labelled, else 1 + the index into `regions`."""

    image: NDArray[np.uint8]  # [H, W, 3] RGB
    ids: NDArray[np.uint8]  # [H, W]
    regions: tuple[tuple[str, ...], ...]
    domain: str
    seed: int

    def names(self) -> list[str]:
        """Canonical names that own at least one visible pixel, in order of first use."""
        present = np.unique(self.ids)
        return list(dict.fromkeys(name for i in present if i for name in self.regions[i - 1]))

    def mask(self, name: str) -> NDArray[np.bool_]:
        """True where a region answers to the canonical `name`; all False when it is absent. [H, W]."""
        table = np.zeros(256, bool)
        for i, names in enumerate(self.regions):
            table[i + 1] = name in names
        return table[self.ids]


def scene(seed: int, domain: str, size: int = 128, split: str = "train") -> Scene:
    """Paint scene number `seed` of a domain at size x size pixels.

    Raises UsageError for an unknown domain or split, or a size outside 32..2048.
    """
    if domain not in PAINTERS:
        raise UsageError(f"unknown scene domain {domain!r}; expected one of {', '.join(DOMAINS)}")
    if split not in SPLITS:
        raise UsageError(f"unknown scene split {split!r}; expected one of {', '.join(SPLITS)}")
    if not 32 <= size <= 2048:
        raise UsageError(f"scene size must be 32 to 2048 pixels, got {size}")
    rng = np.random.default_rng([seed, zlib.crc32(f"{domain}/{split}".encode())])
    image = np.zeros((size, size, 3), np.float32)
    ids = np.zeros((size, size), np.uint8)
    names = PAINTERS[domain](rng, size, image, ids, split)
    light = rng.uniform(*LIGHT)
    image = speckle(rng, image * np.float32(light), rng.uniform(*NOISE))
    pixels = (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    return Scene(pixels, ids, tuple(names), domain, seed)


def is_scenes(data: str) -> bool:
    """Does --data name generated scenes (not a folder)?"""
    return data.partition("@")[0] == "scenes" or data.startswith("scenes:")


def phrase(rng: np.random.Generator, name: str) -> Query:
    """A random training phrasing of a canonical name ("red circle" -> "a circle coloured red")."""
    colour, _, shape = name.partition(" ")
    if colour in COLOURS and shape in SHAPES:
        text = str(rng.choice(PAIRS)).format(c=colour, s=shape)
    elif name in COLOURS:
        text = str(rng.choice(COLOUR_ONLY)).format(name)
    elif name in SHAPES:
        text = str(rng.choice(SHAPE_ONLY)).format(name)
    else:
        text = str(rng.choice(PLAIN)).format(str(rng.choice((name, *SYNONYMS.get(name, ())))))
    return Query(text if rng.random() < PHRASED else name, name)
