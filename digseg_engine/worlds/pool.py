"""A pool of scenes held as arrays, and the batches drawn from it. A batch is a pure function of (seed, step).

Because K prompts are asked about every picture of a batch, one batch carries a full B x K grid of masks, absent
prompts included.
"""

from __future__ import annotations

import copy
import hashlib
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from digseg_engine.console import Pace
from digseg_engine.data.batch import Batch, Choose, Planes, choose_names, to_tensor
from digseg_engine.data.query import TEMPLATES, Query, plural
from digseg_engine.files import replacing
from digseg_engine.worlds import domains, painting, scenes
from digseg_engine.worlds.domains import COLOURS
from digseg_engine.worlds.painting import SHAPES
from digseg_engine.worlds.scenes import CLASSES, UNSEEN_PAIRS, phrase, scene

NAMES: tuple[str, ...] = tuple(name for names in CLASSES.values() for name in names)
TRAIN_NAMES = tuple(name for name in NAMES if name not in UNSEEN_PAIRS)
INDEX = {name: i for i, name in enumerate(NAMES)}
# [names, names]: a colour and a shape, which do not exclude each other as two colours do, or two shapes
APART = np.zeros((len(NAMES), len(NAMES)), bool)
for _colour, _shape in product(COLOURS, SHAPES):
    APART[INDEX[_colour], INDEX[_shape]] = APART[INDEX[_shape], INDEX[_colour]] = True
MAX_REGIONS = 8
PART = 250  # scenes that are painted together
PLURAL, TEMPLATED = 0.05, 0.25  # shares of the prompts
ALIKE = 0.5  # share of batches of `objects` that ask for pairs of few colours


@dataclass
class Pool:
    """N scenes of one domain and size."""

    domain: str
    images: NDArray[np.uint8]  # [N, S, S, 3]
    ids: NDArray[np.uint8]  # [N, S, S]
    members: NDArray[np.bool_]  # [N, 1 + MAX_REGIONS, len(NAMES)]: does region i answer to name j
    latents: Tensor | None = None  # [N, 4, s, s] cached autoencoder latents
    key: str = ""  # what decided the pictures: names files made from them

    @cached_property
    def untold(self) -> NDArray[np.bool_]:
        """[names, names]: a colour and a shape that no region of these pictures has both of.

        If no ring is red here, "what is red is no ring" holds in every picture, and a model that learns it cannot find a red
        ring; so such words say nothing about each other. Which pairs a test asks for is not looked at.
        """
        regions = self.members.reshape(-1, len(NAMES)).astype(np.float32)
        return np.asarray(APART & (regions.T @ regions == 0))

    def __len__(self) -> int:
        return len(self.images)

    def present(self, index: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which names own a region of scene `index`: [n, len(NAMES)] (a hidden region counts as present)."""
        return np.asarray(self.members[index].any(1))

    def masks(self, index: NDArray[np.int64], names: list[str]) -> Tensor:
        """Masks of the named regions: [n, K, S, S] float."""
        return self._paint(index, self.members[index][:, :, [INDEX[name] for name in names]])

    def known(self, index: NDArray[np.int64], names: list[str]) -> Tensor | None:
        """Where it is known whether a name holds: [n, K, S, S] float, 0 on regions of a word that says nothing about it.

        None where everything is known.
        """
        unknown = self.untold[:, [INDEX[name] for name in names]]  # [len(NAMES), K]
        if not unknown.any():
            return None
        return self._paint(index, np.asarray(~(self.members[index][..., None] & unknown).any(2)))

    def _paint(self, index: NDArray[np.int64], table: NDArray[np.bool_]) -> Tensor:
        """What a table [n, R, K] says of every region, at every pixel: [n, K, S, S] float."""
        picked = np.take_along_axis(table, self.ids[index].reshape(len(index), -1, 1).astype(np.int64), axis=1)
        size = self.ids.shape[-1]
        return torch.from_numpy(picked.transpose(0, 2, 1).reshape(len(index), -1, size, size)).float()


@dataclass
class Drawn:
    """B pictures of one pool."""

    pool: Pool
    index: NDArray[np.int64]  # [B]
    images: Tensor  # [B, 3, S, S] in -1..1
    latents: Tensor  # [B, 4, s, s]; [B, 0] before the autoencoder is trained


def _paint_range(domain: str, size: int, split: str, seeds: range) -> tuple[NDArray[np.uint8], ...]:
    scenes = [scene(seed, domain, size, split) for seed in seeds]
    members = np.zeros((len(scenes), 1 + MAX_REGIONS, len(NAMES)), np.uint8)
    for n, painted in enumerate(scenes):
        for i, names in enumerate(painted.regions):
            members[n, i + 1, [INDEX[name] for name in names]] = 1
    return np.stack([painted.image for painted in scenes]), np.stack([painted.ids for painted in scenes]), members


@cache
def generator() -> str:
    """A short hash of the program that paints scenes: pools painted by another version of it are painted anew."""
    digest = hashlib.sha256()
    for module in (painting, domains, scenes):
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()[:12]


def build_pool(domain: str, count: int, size: int, folder: Path, split: str = "train", workers: int = 2) -> Pool:
    """Paint scenes 0..count-1 of a domain (or read from `folder` what this version of the generator painted)."""
    key = hashlib.sha256(f"{domain}/{count}/{size}/{split}/{NAMES}/{generator()}".encode()).hexdigest()[:12]
    path = folder / f"{domain}-{size}-{key}.npz"
    if not path.is_file():
        chunks = [range(i, min(i + PART, count)) for i in range(0, count, PART)]
        with ProcessPoolExecutor(workers) as pool:
            pace, parts = Pace(f"painting scenes of {domain}, in parts of up to {PART}", len(chunks)), []
            for part in pool.map(partial(_paint_range, domain, size, split), chunks):
                parts.append(part)
                pace()
        images, ids, members = (np.concatenate(arrays) for arrays in zip(*parts))
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, images=images, ids=ids, members=members)
    with np.load(path) as stored:
        return Pool(domain, stored["images"], stored["ids"], stored["members"].astype(bool), key=key)


def look_alikes(rng: np.random.Generator, present: list[str], count: int) -> list[str]:
    """Present pairs of as few colours as fill `count` prompts: "red star" is learned beside "red cross"."""
    colours: list[str] = rng.permutation(list(COLOURS)).tolist()
    pairs = [name for colour in colours for name in present if name.startswith(f"{colour} ")]
    return pairs[:count] or present


class SceneBatches:
    """Draws batches from the pools of all domains; `shares` says how often each domain is drawn.

    crowd: pictures for each that is asked for, where they are smaller than those of other data.
    """

    def __init__(self, pools: dict[str, Pool], shares: dict[str, float], seed: int, crowd: int = 1) -> None:
        self.pools, self.seed, self.crowd = pools, seed, crowd
        self.choose: Choose = choose_names
        self.domains = list(pools)
        own = {name for domain in self.domains for name in CLASSES[domain]}
        self.names = tuple(name for name in TRAIN_NAMES if name in own)
        total = sum(shares[d] for d in self.domains)
        self.weights = [shares[d] / total for d in self.domains]

    def draw(self, step: int, size: int) -> tuple[np.random.Generator, Drawn]:
        """The pictures of batch number `step`, all of one domain, and the generator to go on with."""
        rng, pool, index = self._choose(step, size)
        latents = torch.empty(len(index), 0) if pool.latents is None else pool.latents[index].float()
        return rng, Drawn(pool, index, to_tensor(pool.images[index]), latents)

    def _choose(self, step: int, size: int) -> tuple[np.random.Generator, Pool, NDArray[np.int64]]:
        rng = np.random.default_rng([self.seed, step])
        pool = self.pools[self.domains[int(rng.choice(len(self.domains), p=self.weights))]]
        return rng, pool, rng.integers(0, len(pool), size * self.crowd)

    def pictures(self, step: int, size: int) -> list[str]:
        _, pool, index = self._choose(step, size)
        return [f"{pool.domain} scene {number}" for number in index.tolist()]

    def batch(self, step: int, size: int, prompts: int) -> Batch:
        """Batch number `step`: `size` pictures of one domain and `prompts` prompts."""
        rng, drawn = self.draw(step, size)
        present = [NAMES[i] for i in np.flatnonzero(drawn.pool.present(drawn.index).any(0))]
        if drawn.pool.domain == "objects" and self.choose is choose_names and rng.random() < ALIKE:
            present = look_alikes(rng, present, prompts)
        queries = [phrase(rng, name) for name in self.choose(rng, present, self.names, prompts)]
        names = [query.name for query in queries]
        masks, known = drawn.pool.masks(drawn.index, names), drawn.pool.known(drawn.index, names)
        return Batch(drawn.images, drawn.latents, queries, Planes(masks, known), drawn)

    def asked_by(self, choose: Choose) -> SceneBatches:
        other = copy.copy(self)
        other.choose = choose
        return other

    def phrase(self, rng: np.random.Generator, name: str) -> Query:
        """The generator's own phrasing, a share of them the plural or in a template that people use for pictures."""
        query, drawn = phrase(rng, name), rng.random()
        if drawn < PLURAL:
            return Query(plural(name), name)
        return Query(str(rng.choice(TEMPLATES)).format(query.text), name) if drawn < PLURAL + TEMPLATED else query
