"""Batches of crops, read ahead by threads or processes without changing a result.

A picture may be decoded once for several crops ("data echoing" before augmentation: Choi, Passos, Shallue and Dahl 2019,
arXiv:1907.05550). Batches that share their pictures form a group; those of a group lie `APART` steps from each other, so
that neighbouring steps show different pictures, and up to `APART` processes that take turns each decode their own alone.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from digseg_engine.data.crops import Crops, Window, cut_labels, cut_picture, draw_window
from digseg_engine.data.datasets import Dataset
from digseg_engine.data.shard_order import ShardOrder
from digseg_engine.data.shards import ShardRecords
from digseg_engine.errors import TrainingError

APART = 8  # steps from one batch of a group to the next
Numbers = NDArray[np.int64]
Readers = Literal["threads", "processes"]


@dataclass(frozen=True)
class CropReader:
    """What decides every crop: batch number `step` is a pure function of (seed, step, count) and the files.

    variants: every picture has so many fixed crops (so that what is computed from them can be kept); 0 draws new ones.
    echo: crops of every decoded picture. augment: kinds of `augmentation.KINDS` that windows have. odds: [N], how often
    pictures are drawn beside each other; None: alike. order: of shards, the ones that pictures are drawn from; None: all.
    """

    dataset: Dataset
    side: int
    seed: int
    variants: int = 0
    echo: int = 1
    augment: tuple[str, ...] = ()
    odds: NDArray[np.float64] | None = None
    order: ShardOrder | None = None

    def group(self, step: int) -> tuple[int, ...]:
        """The steps whose batches share their pictures with batch `step`, in order."""
        span = APART * self.echo
        first = step - step % span + step % span % APART
        return tuple(first + k * APART for k in range(self.echo))

    def read(self, group: Sequence[int], steps: Sequence[int], count: int) -> list[Crops]:
        """The `count` crops of every batch of `steps`, which all belong to `group`. Raises InputError naming a bad file."""
        pictures, _ = self.choose(group[0], count)
        self._expect_shards(group[0], count)
        variants = {step: self.choose(step, count)[1] for step in group}
        shape = (count, self.side, self.side)
        batches = [
            Crops(pictures, variants[s], np.empty((*shape, 3), np.uint8), np.empty(shape, np.int16)) for s in steps
        ]
        for n, picture in enumerate(pictures.tolist()):
            ids = self.dataset.read_ids(picture)
            windows = {step: self._window(step, n, picture, variants, ids.shape) for step in group}
            smallest = min(window.span for window in windows.values())
            image = self.dataset.read_reduced(picture, smallest // self.side)
            for step, batch in zip(steps, batches):
                batch.images[n] = cut_picture(image, ids.shape, windows[step], self.side)
                batch.ids[n] = cut_labels(ids, windows[step], self.side)
        return batches

    def choose(self, step: int, count: int) -> tuple[Numbers, Numbers]:
        """The pictures [count] of batch `step` if it is the first of its group, and which of their fixed crops."""
        rng = np.random.default_rng([self.seed, step])
        within = None if self.order is None else self.order.pictures(self._drawn(step, count))
        if self.odds is None:
            pictures = rng.integers(0, len(self.dataset) if within is None else len(within), count)
        else:
            heaped = (self.odds if within is None else self.odds[within]).cumsum()
            pictures = np.searchsorted(heaped, rng.random(count) * heaped[-1], side="right").clip(max=len(heaped) - 1)
        pictures = pictures if within is None else within[pictures]
        return pictures, rng.integers(0, max(1, self.variants), count)

    def _drawn(self, step: int, count: int) -> int:
        """How many pictures the groups before that of batch `step` draw."""
        return (step // (APART * self.echo) * APART + step % APART) * count

    def _expect_shards(self, step: int, count: int) -> None:
        records = self.dataset.records
        if self.order is not None and isinstance(records, ShardRecords):
            records.expect(self.order.coming(self._drawn(step, count)))

    def _window(
        self, step: int, n: int, picture: int, variants: dict[int, Numbers], shape: tuple[int, ...]
    ) -> Window:  # fmt: skip
        key = [self.seed, 1, picture, int(variants[step][n])] if self.variants else [self.seed, 0, step, n]
        return draw_window(np.random.default_rng(key), shape[0], shape[1], self.augment)


@dataclass
class _Task:
    """Batches of one group that are being read, or lie ready and were not asked for yet."""

    steps: list[int]
    future: Future[list[Crops]]


class CropLoader:
    """Asks a `CropReader` for batches ahead of need, in `workers` threads or processes; 0 reads when asked."""

    def __init__(self, reader: CropReader, workers: int = 2, readers: Readers = "threads") -> None:
        self.reader, self.ahead = reader, 2 * workers
        self._pool = _executor(reader, workers, readers)
        self._read = _read_in_process if workers and readers == "processes" else reader.read
        self._tasks: dict[tuple[int, int], _Task] = {}  # by the first step of the group and the number of crops
        self._last = -1
        self._told: Sequence[int] = ()
        weakref.finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)

    def expect(self, steps: Sequence[int]) -> None:
        """Say which steps will be asked for after the next one; untold, they are expected at the distance of the last two."""
        self._told = steps

    def __call__(self, step: int, count: int) -> Crops:
        """The `count` crops of batch number `step`. Raises InputError naming an unusable file."""
        stride = step - self._last if 0 <= self._last < step else 1  # several processes take turns
        self._last = step
        span = APART * self.reader.echo
        following = self._told or range(step + stride, step + 2 * span + self.ahead * stride, stride)
        key = self.reader.group(step)[0], count
        try:
            self._order([step, *self._soon(step, following)], 1 if self._told else stride, count)
            task = self._tasks[key]
            crops = task.future.result().pop(task.steps.index(step))
        except (BrokenProcessPool, BrokenPipeError) as error:
            raise TrainingError("a process that reads pictures was ended from outside, often for want of memory or shared memory "
                                "(/dev/shm); use fewer --workers, or --readers threads") from error  # fmt: skip
        task.steps.remove(step)
        if not task.steps:
            del self._tasks[key]
        return crops

    def _soon(self, step: int, following: Sequence[int]) -> list[int]:
        """Which of the `following` steps to read already. Groups of the coming span are begun evenly over this one, so that
        decoding never has to be done in a burst."""
        near = list(following[: self.ahead])
        if self.reader.echo == 1 or not self.ahead:
            return near
        span = APART * self.reader.echo
        first = step - step % span + span
        begun = first + step % span // self.reader.echo
        return near + [s for s in following if first <= s <= begun and s not in near]

    def _order(self, coming: Sequence[int], stride: int, count: int) -> None:
        """Have all batches read that are `coming`, each with those of its group that will be asked for later."""
        wanted = {self.reader.group(step)[0] for step in coming}
        latest = coming[0] + APART * self.reader.echo
        for first, size in list(self._tasks):
            if size != count or (first not in wanted and not coming[0] <= self._tasks[first, size].steps[-1] < latest):
                self._tasks.pop((first, size)).future.cancel()
        for step in coming:
            group = self.reader.group(step)
            task = self._tasks.get((group[0], count))
            if task is None or step not in task.steps:
                steps = [s for s in group if s >= step and (s - step) % stride == 0]
                self._tasks[group[0], count] = _Task(steps, self._pool.submit(self._read, group, tuple(steps), count))


class _AtOnce(Executor):
    """Runs what is submitted before it returns."""

    def submit(self, fn: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(fn(*arguments, **named))
        except Exception as error:
            done.set_exception(error)
        return done


def _executor(reader: CropReader, workers: int, readers: Readers) -> Executor:
    if not workers:
        return _AtOnce()
    if readers == "threads":
        return ThreadPoolExecutor(workers, "crops")
    # Never fork: the program has threads by now, and a fork copies their locks in whatever state they are.
    if os.name != "posix":
        return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin_process, (reader,))
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([__name__])
    return ProcessPoolExecutor(workers, server, _begin_process, (reader,))


_reader: CropReader  # of a reading process


def _begin_process(reader: CropReader) -> None:
    global _reader
    _reader = reader
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program that trains, which ends the pool
    torch.set_num_threads(1)


def _read_in_process(group: Sequence[int], steps: Sequence[int], count: int) -> list[Crops]:
    return [_Shared(crops) for crops in _reader.read(group, steps, count)]  # type: ignore[misc]


class _Shared:
    """Crops on their way between processes, through shared memory as PyTorch hands over tensors; `Crops` on arrival."""

    def __init__(self, crops: Crops) -> None:
        self.crops = crops

    def __reduce__(self) -> tuple[Callable[..., Crops], tuple[Any, ...]]:
        crops = self.crops
        return _arrived, (crops.pictures, crops.variants, torch.from_numpy(crops.images), torch.from_numpy(crops.ids))


def _arrived(pictures: Numbers, variants: Numbers, images: torch.Tensor, ids: torch.Tensor) -> Crops:
    return Crops(pictures, variants, images.numpy(), ids.numpy())
