"""How fast training pictures are read: `python benchmarks/loader.py`.

Two generated data sets: 2048x1024 PNG pictures with PNG masks (as Cityscapes) and 683x512 JPEG pictures with PNG masks (as
ADE20K); 19 classes in patches, pictures of smooth noise with a little grain. The peer is the reader that this project began
with: the whole picture decoded for every crop (a PNG several times over, as Pillow decodes it to look for an orientation
behind its pixels), resized by Pillow, labels carried as one float mask per prompt, two threads. Rounds of all readers
alternate; figures are medians over the rounds, in crops a second on the CPU alone, nothing encoded.

"crops" are pixels and class numbers; "batch" is all that the CPU does before a GPU has the batch (the peer: float pictures
and masks; now: 8-bit pixels and class numbers, from which the GPU makes both). Making both on the CPU is shown too. "shards" are
the same pictures, packed into about five tar files.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import date
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from digseg_engine.data.batch import to_tensor
from digseg_engine.data.batches import FolderBatches
from digseg_engine.data.crops import Crops, Window, draw_window
from digseg_engine.data.datasets import IGNORE, Dataset, open_dataset
from digseg_engine.data.loader import APART, CropLoader, CropReader
from digseg_engine.data.masks import read_mask
from digseg_engine.data.packing import pack
from digseg_engine.data.shard_order import ShardOrder
from digseg_engine.data.shards import ShardRecords
from digseg_engine.files import write_json
from digseg_engine.images import decode, to_rgb
from digseg_engine.reading import open_image
from digseg_engine.runtime.machine import device_key

RESULTS = Path(__file__).resolve().parent / "results"
KINDS = {"2048x1024 PNG": (1024, 2048, "png"), "683x512 JPEG": (512, 683, "jpg")}
CLASSES, COUNT, PROMPTS, WORKERS = 19, 4, 16, 2


def make_folder(folder: Path, height: int, width: int, suffix: str, pictures: int) -> Path:
    """A data set of generated pictures, textured as photographs are: about as many bytes a pixel."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for n in range(pictures):
        rng = np.random.default_rng(n)
        pixels = np.zeros((height, width, 3), np.float32)
        for cell, share in ((4, 0.1), (16, 0.3), (64, 0.3), (256, 0.3)):
            coarse = rng.integers(0, 256, (height // cell, max(2, width // cell), 3), dtype=np.uint8)
            pixels += share * np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
        pixels = np.clip(pixels + rng.normal(0, 2, pixels.shape), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"images/{n}.{suffix}", quality=92)
        labels = rng.integers(0, CLASSES, (height // 64, width // 64), dtype=np.uint8)
        Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST).save(folder / f"masks/{n}.png")
    names = ", ".join(f'"class {k}"' for k in range(CLASSES))
    (folder / "classes.json").write_text(f'{{"classes": [{names}]}}')
    return folder


class Peer:
    """The reader this project began with: everything of a picture for every crop, threads that read ahead."""

    def __init__(self, dataset: Dataset, side: int, workers: int) -> None:
        self.dataset, self.side, self.ahead = dataset, side, 2 * workers
        self.pool = ThreadPoolExecutor(workers)
        self.pending: dict[int, Future[Crops]] = {}

    def __call__(self, step: int, count: int) -> Crops:
        for n in range(step, step + self.ahead + 1):
            if n not in self.pending:
                self.pending[n] = self.pool.submit(self.load, n, count)
        return self.pending.pop(step).result()

    def load(self, step: int, count: int) -> Crops:
        pictures = np.random.default_rng([0, step]).integers(0, len(self.dataset), count)
        pairs = [self.crop(step, n, int(i)) for n, i in enumerate(pictures)]
        images, ids = (np.stack(arrays) for arrays in zip(*pairs))
        return Crops(pictures, np.zeros(count, np.int64), images, ids)

    def crop(self, step: int, n: int, picture: int) -> tuple[np.ndarray, np.ndarray]:
        record = self.dataset.records[picture]
        for path in (record.image, record.mask, record.image):  # its shape, then whether the mask and it are turned
            with path.open("rb") as file:
                open_image(file).getexif()
        ids = read_mask(record.mask, self.dataset.table)
        window = draw_window(np.random.default_rng([0, 0, step, n]), *ids.shape)
        image = decode(record.image, to_rgb, reduce=max(1, window.span // self.side))
        return cut_picture(image, window, self.side, ids.shape[0] // image.shape[0]), cut_labels(ids, window, self.side)


def cut_picture(image: np.ndarray, window: Window, side: int, factor: int) -> np.ndarray:
    span = window.span // factor
    top, left = window.top // factor, window.left // factor
    ends = [(max(0, at), min(n, at + span)) for at, n in zip((top, left), image.shape)]
    piece = image[slice(*ends[0]), slice(*ends[1])]
    beyond = [(low - at, at + span - high) for (low, high), at in zip(ends, (top, left))]
    square = Image.fromarray(np.pad(piece, (*beyond, (0, 0)), mode="edge"))
    pixels = np.asarray(square.resize((side, side), Image.Resampling.BILINEAR))
    return pixels[:, ::-1] if window.mirrored else pixels


def cut_labels(ids: np.ndarray, window: Window, side: int) -> np.ndarray:
    steps = np.floor((np.arange(side) + 0.5) * window.span / side).astype(int)
    rows, columns = window.top + steps, window.left + steps
    labels = ids[rows.clip(0, ids.shape[0] - 1)[:, None], columns.clip(0, ids.shape[1] - 1)]
    labels[(rows < 0) | (rows >= ids.shape[0])] = IGNORE
    labels[:, (columns < 0) | (columns >= ids.shape[1])] = IGNORE
    return labels[:, ::-1] if window.mirrored else labels


def peer_batch(crops: Crops) -> None:
    """What was made of crops on the CPU: float pictures and, for every prompt, float masks."""
    np.unique(crops.ids)
    chosen = np.arange(PROMPTS, dtype=crops.ids.dtype)
    torch.from_numpy(crops.ids[:, None] == chosen[:, None, None]).float()
    unknown = crops.ids == IGNORE
    if unknown.any():
        torch.from_numpy(~unknown[:, None]).float()
    to_tensor(crops.images)


class Unencoded:
    """In place of the autoencoder: nothing is encoded. On the device "meta" only what the CPU does before a copy is done."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)

    def __call__(self, crops: Crops, images: torch.Tensor) -> torch.Tensor:
        return torch.empty(len(crops.images), 0)


# What is measured, by name: the reader, crops of every decoded picture, what is made of the crops.
CASES = {
    "peer, crops": ("peer", 1, "crops"),
    "threads, crops": ("threads", 1, "crops"),
    "threads, echo 4, crops": ("threads", 4, "crops"),
    "threads, shards, crops": ("threads", 1, "crops"),
    "threads, window of 2 shards, crops": ("threads", 1, "crops"),
    "processes, crops": ("processes", 1, "crops"),
    "processes, echo 4, crops": ("processes", 4, "crops"),
    "peer, batch": ("peer", 1, "batch"),
    "threads, echo 4, batch": ("threads", 4, "batch"),
    "processes, echo 4, batch": ("processes", 4, "batch"),
    "threads, echo 4, batch and masks on the CPU": ("threads", 4, "masks"),
}


def step_of(
    dataset: Dataset, side: int, reader: str, echo: int, made: str, windowed: bool = False
) -> Callable[[int], object]:  # fmt: skip
    """What one step of a case does. windowed: pictures are drawn from two shards at a time."""
    if reader == "peer":
        peer = Peer(dataset, side, WORKERS)
        return lambda step: peer(step, COUNT) if made == "crops" else peer_batch(peer(step, COUNT))
    order = ShardOrder(dataset.records.starts, 2, 0) if windowed and isinstance(dataset.records, ShardRecords) else None
    load = CropLoader(CropReader(dataset, side, 0, echo=echo, order=order), WORKERS, reader)  # type: ignore[arg-type]
    if made == "crops":
        return lambda step: load(step, COUNT)
    batches = FolderBatches(dataset, load, Unencoded("meta" if made == "batch" else "cpu"), 0)
    if made == "batch":
        return lambda step: batches.batch(step, COUNT, PROMPTS)

    def with_masks(step: int) -> object:
        batch = batches.batch(step, COUNT, PROMPTS)
        return batch.masks, batch.valid

    return with_masks


def rate(step: Callable[[int], object], steps: int) -> float:
    """Crops a second, after as many steps as are read ahead at first."""
    first = 2 * WORKERS
    for n in range(first):
        step(n)
    began = time.perf_counter()
    for n in range(first, first + steps):
        step(n)
    return COUNT * steps / (time.perf_counter() - began)


def measure(kind: str, side: int, pictures: int, rounds: int) -> dict[str, object]:
    """Medians over alternating rounds, and how many times the peer's they are."""
    found: dict[str, list[float]] = {name: [] for name in CASES}
    with tempfile.TemporaryDirectory() as folder:
        dataset = open_dataset(make_folder(Path(folder) / "data", *KINDS[kind], pictures))
        pack({"all": dataset}, Path(folder) / "shards", sum(p.stat().st_size for p in Path(folder).rglob("*.*")) // 4)
        packed = open_dataset(Path(folder) / "shards")
        for _ in range(rounds):
            for name, (reader, echo, made) in CASES.items():
                steps = 2 * APART * echo if echo > 1 else 10  # whole groups, so that decoding counts as it should
                read = packed if "shard" in name else dataset
                found[name].append(rate(step_of(read, side, reader, echo, made, "window" in name), steps))
    rates = {name: round(statistics.median(values), 1) for name, values in found.items()}
    ratios = {
        name: round(rates[name] / rates["peer, crops" if name.endswith("crops") else "peer, batch"], 2)
        for name in rates
    }
    for name in rates:
        print(f"{kind} at {side} px: {name:<45} {rates[name]:8.1f} crops/s {ratios[name]:6.2f} x", flush=True)
    spread = {name: [round(min(values), 1), round(max(values), 1)] for name, values in found.items()}
    return {"pictures": kind, "side": side, "crops_per_second": rates, "range": spread, "times_the_peer": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[512, 768], help="pixels of the crops")
    parser.add_argument("--pictures", type=int, default=16, help="pictures of each data set")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS / "loader.json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(kind, side, asked.pictures, asked.rounds) for kind in KINDS for side in asked.sides]
    setting = {"workers": WORKERS, "crops_in_a_batch": COUNT, "prompts": PROMPTS, "rounds": asked.rounds}
    versions = {"torch": torch.__version__, "pillow": Image.__version__, "numpy": np.__version__}
    write_json(
        asked.output, {"date": date.today().isoformat(), "machine": device_key(), **versions, **setting, "rows": rows}
    )


if __name__ == "__main__":
    main()
