"""Training batches from a folder of labelled pictures: random crops, random prompts, latents from the frozen autoencoder."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray
from torch import Tensor

from digseg_engine.cache import own_folder
from digseg_engine.console import Pace
from digseg_engine.data.augmentation import augment, check_installed, check_kinds
from digseg_engine.data.balance import class_presence, repeat_factors
from digseg_engine.data.batch import Batch, Choose, Numbers, carried, choose_names, to_tensor
from digseg_engine.data.checks import label_counts
from digseg_engine.data.crops import Crops
from digseg_engine.data.datasets import Dataset, open_dataset
from digseg_engine.data.loader import CropLoader, CropReader, Readers
from digseg_engine.data.query import Query
from digseg_engine.data.shard_cache import LIMIT, ShardCache
from digseg_engine.data.shard_order import REMOTE_WINDOW, ShardOrder
from digseg_engine.data.shards import ShardRecords
from digseg_engine.errors import UsageError
from digseg_engine.extras import require
from digseg_engine.model.autoencoder import Autoencoder, encode_image, fingerprint, latent_stride
from digseg_engine.model.devices import device_of


@dataclass(frozen=True)
class FolderOptions:
    """How a folder of labelled pictures is read for training."""

    layout: str | None = None  # None: recognised
    split: str = "train"
    cached_crops: int = (
        0  # fixed crops per picture, each encoded once and kept; 0: new crops for ever, encoded every time
    )
    workers: int = 2  # threads or processes that read ahead; any number gives the same batches
    readers: Readers = "threads"  # what the workers are
    echo: int = 1  # crops of a picture each time it is decoded
    balance: float = 0.0  # pictures of classes in less than this share of them are drawn more often; 0: all alike
    augment: tuple[str, ...] = ()  # changes of `augmentation.KINDS`
    shard_window: int | None = (
        None  # shards drawn from at a time; 0: all; None: all of local ones, REMOTE_WINDOW of others
    )
    shard_cache: float | None = None  # GB of copies of remote shards on this machine; None: shard_cache.LIMIT, 0: none

    def __post_init__(self) -> None:
        if self.cached_crops < 0 or self.workers < 0:
            raise UsageError(f"cached crops and workers must be 0 or more, got {self.cached_crops} and {self.workers}")
        if self.readers not in ("threads", "processes"):
            raise UsageError(f"readers must be threads or processes, got {self.readers!r}")
        if self.echo < 1 or (self.echo > 1 and self.cached_crops):
            raise UsageError(f"echo must be 1 or more, and 1 with cached crops, which are few already; got {self.echo} with "
                             f"{self.cached_crops} cached crops")  # fmt: skip
        if not 0 <= self.balance <= 1:
            raise UsageError(f"balance must be a share of the pictures from 0 to 1, got {self.balance}")
        if (self.shard_window or 0) < 0 or (self.shard_cache or 0) < 0:
            raise UsageError(
                f"shard window and shard cache must be 0 or more, got {self.shard_window} and {self.shard_cache}"
            )
        check_kinds(self.augment)
        if self.cached_crops and {"colour", "blur"} & set(self.augment):
            raise UsageError("colour and blur are drawn anew for every crop, and cached crops keep their latents; leave one of "
                             "them out")  # fmt: skip


class FolderBatches:
    """Batches from a data set; batch number `step` is a pure function of (seed, step) and the files."""

    def __init__(
        self, dataset: Dataset, load: CropLoader, encode: Encode, seed: int, kinds: Sequence[str] = ()
    ) -> None:  # fmt: skip
        self.dataset, self.load, self.encode, self.seed, self.kinds = dataset, load, encode, seed, kinds
        self.names = dataset.names + dataset.table.absent  # numbers past the classes occur in no picture
        self.choose: Choose = choose_names

    def batch(self, step: int, size: int, prompts: int) -> Batch:
        """Batch number `step`, on the autoencoder's device: crops of `size` pictures and `prompts` prompts, a fifth of
        them from all names."""
        crops = self.load(step, size)
        rng = np.random.default_rng([self.seed, step, 2])
        counts = np.stack([label_counts(ids, len(self.names)) for ids in crops.ids])  # [B, C + 2]
        present = [self.names[k] for k in np.flatnonzero(counts[:, :-2].any(0))]
        queries = [self.phrase(rng, name) for name in self.choose(rng, present, self.names, prompts)]
        chosen = np.array([self.names.index(query.name) for query in queries], crops.ids.dtype)
        device = self.encode.device
        ids, asked, shown = (carried(array, device) for array in (crops.ids, chosen, counts[:, chosen] > 0))
        labels = Numbers(ids, asked, shown, whole=not counts[:, -1].any())
        images = to_tensor(crops.images, device)
        if self.kinds:
            images = augment(images, self.kinds, np.random.default_rng([self.seed, step, 5]))
        return Batch(images, self.encode(crops, images), queries, labels)

    def asked_by(self, choose: Choose) -> FolderBatches:
        other = copy.copy(self)
        other.choose = choose
        return other

    def phrase(self, rng: np.random.Generator, name: str) -> Query:
        return self.dataset.table.phrase(rng, name)

    def pictures(self, step: int, size: int) -> list[str]:
        reader = self.load.reader
        return [str(self.dataset.records[i].image) for i in reader.choose(reader.group(step)[0], size)[0].tolist()]


class Encode(Protocol):
    """Crops and their pixels [B, 3, S, S] in -1..1 -> latents [B, 4, s, s] in float32."""

    @property
    def device(self) -> torch.device: ...

    def __call__(self, crops: Crops, images: Tensor) -> Tensor: ...


class Encoder:
    """Latents of crops from a frozen autoencoder, in float32 whatever the training's precision."""

    def __init__(self, vae: Autoencoder) -> None:
        self.vae = vae.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return device_of(self.vae)

    @torch.no_grad()
    def __call__(self, crops: Crops, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            return encode_image(self.vae, images).float()


class CachedEncoder:
    """Latents of fixed crops, encoded when first asked for and kept in a float16 file."""

    def __init__(self, encode: Encode, path: Path, pictures: int, variants: int, shape: tuple[int, ...]) -> None:
        self.encode, self.variants = encode, variants
        count = pictures * variants
        with PartialState().main_process_first():
            self.latents = _mapped(path, np.float16, (count, *shape))
            self.done = _mapped(path.with_suffix(".done"), np.uint8, (count,))

    @property
    def device(self) -> torch.device:
        return self.encode.device

    def __call__(self, crops: Crops, images: Tensor) -> Tensor:
        place = crops.pictures * self.variants + crops.variants
        todo = np.flatnonzero(self.done[place] == 0)
        if len(todo):
            # One at a time: in company the last bits differ, and with them the rounding to half precision.
            for i in todo:
                self.latents[place[i]] = self.encode(crops, images[i : i + 1])[0].cpu().numpy()
            self.latents.flush()
            self.done[place[todo]] = 1
        return carried(self.latents[place].astype(np.float32), images.device)


def _mapped(path: Path, dtype: type, shape: tuple[int, ...]) -> np.memmap:
    """An array in a file, new ones filled with zeros (a sparse file: it takes the space of what was written)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        with path.open("wb") as file:
            file.truncate(int(np.prod(shape)) * np.dtype(dtype).itemsize)
    return np.memmap(path, dtype, "r+", shape=shape)


def folder_batches(
    vae: Autoencoder, folder: str, size: int, seed: int, options: FolderOptions, cache: Path
) -> FolderBatches:
    """Batches of size x size pixels from a folder of labelled pictures; `cache` keeps the latents of fixed crops.

    Raises InputError or UsageError for a folder that cannot be used.
    """
    dataset = open_dataset(folder, options.layout, options.split)
    check_installed(options.augment)
    odds = None if not options.balance else _odds(dataset, options.balance, cache)
    windows = tuple(kind for kind in options.augment if kind in ("scale", "rotation"))
    order = _shard_order(dataset, options, seed)
    reader = CropReader(dataset, size, seed, options.cached_crops, options.echo, windows, odds, order)
    load = CropLoader(reader, options.workers, options.readers)
    encode: Encode = Encoder(vae)
    if options.cached_crops:
        side = size // latent_stride(vae)
        decisive = size, seed, options.cached_crops, fingerprint(vae), *([windows] if windows else [])
        shape = (int(vae.config.latent_channels), side, side)
        path = cache / f"latents-{_state(dataset, *decisive)}.f16"
        encode = CachedEncoder(encode, path, len(dataset), options.cached_crops, shape)
    kinds = [kind for kind in options.augment if kind not in windows]
    return FolderBatches(dataset, load, encode, seed, kinds)


def _shard_order(dataset: Dataset, options: FolderOptions, seed: int) -> ShardOrder | None:
    """The order in which shards are read, None where pictures are drawn from all of them; sets up the copies."""
    records = dataset.records
    if not isinstance(records, ShardRecords):
        return None
    window = options.shard_window
    if window is None:
        window = REMOTE_WINDOW if records.remote else 0
    if not 0 < window < len(records.starts) - 1:
        return None
    gigabytes = LIMIT if options.shard_cache is None else options.shard_cache
    folder = own_folder(create=True)
    if records.remote and gigabytes and folder is not None:
        require("copies of shards on this machine", "remote")
        records.store.cache = ShardCache(folder / "shards", int(gigabytes * 1e9))
    return ShardOrder(records.starts, window, seed)


def _odds(dataset: Dataset, threshold: float, cache: Path) -> NDArray[np.float64]:
    """Repeat factors of all pictures; the first process reads the masks, the others wait."""
    with PartialState().main_process_first():
        pace = Pace("looking for the classes of every picture", len(dataset), speaks=PartialState().is_main_process)
        kept = cache / f"classes-{_state(dataset, 'classes', dataset.names)}.npy"
        return repeat_factors(class_presence(dataset, kept, pace), threshold)


def _state(dataset: Dataset, *settings: object) -> str:
    """Short hash of the pictures' names, sizes and times, and of whatever else decides the latents."""
    digest = hashlib.sha256(repr(settings).encode())
    for record in dataset.records:
        digest.update(record.state().encode())
    return digest.hexdigest()[:12]
