"""The engine: a bundle or checkpoint, a backend, and the one function of numbered stages that turns pictures into masks."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from digseg_engine.bundle import Bundle
from digseg_engine.errors import UsageError
from digseg_engine.images import Canvas, as_picture, fit, unfit_plane
from digseg_engine.runtime.backends import Array, Backend, kinds
from digseg_engine.runtime.chunks import ChunkedRunner
from digseg_engine.runtime.labels import USUAL, Rules, label
from digseg_engine.runtime.prompts import PromptCache
from digseg_engine.runtime.result import About, Segmentation
from digseg_engine.runtime.source import Source, open_source
from digseg_engine.runtime.tensors import logits_of
from digseg_engine.text import PromptTokenizer, check_prompts

if TYPE_CHECKING:
    from digseg_engine.runtime.tiles import TiledSegmentation


@dataclass(frozen=True)
class Quality:
    """refine: how many of the most confident prompts the reference goes over again; steps: its sampling steps, 1 to 4."""

    refine: int = 0
    steps: int = 4
    seed: int = 0


class Engine:
    """Loads a model once and segments pictures with it. One engine may be used from many threads: results are those of
    one thread, bit for bit."""

    def __init__(self, source: Source, backend: Backend, fallbacks: tuple[str, ...] = ()) -> None:
        self.source, self.backend, self.fallbacks = source, backend, fallbacks
        self.image_size, self.stride = source.sizes
        self.runner = ChunkedRunner(backend)
        self.prompts = PromptCache(PromptTokenizer.load(source.tokenizer), self.runner.encode)
        self._refiner: Any = None
        self._lock = Lock()

    @classmethod
    def load(
        cls, model: Path | str, backend: str = "auto", checkpoint: Path | str | None = None, size: int | None = None,
        batch: int = 1, prompts: int = 1, pictures: int | None = None, threads: int | None = None, device: str | None = None,
    ) -> Engine:  # fmt: skip
        """Open a bundle (every hash is checked) or a checkpoint directory and create a backend.

        backend: a name, or `auto` for the fastest one that is right, measured at size x size pixels (default: the
        model's own), `batch` pictures and `prompts` prompts; the verdict is remembered. checkpoint: the directory the
        bundle was exported from, which the torch backends and `refine` need. pictures: how many will follow, if that
        is known: for a few small ones ONNX Runtime starts sooner and runs slower. threads: how many a backend on the CPU
        may use (default: the cores of this process, a container's quota respected). device: "cpu", "cuda" or "cuda:1"
        (default: each backend's own).
        Raises BundleError for a damaged or foreign bundle, CheckpointError for a broken checkpoint, UsageError for an
        unknown backend name, threads or device, BackendError for a backend that cannot run here.
        """
        known = kinds()
        if backend not in ("auto", *known):
            raise UsageError(f"unknown backend {backend!r}; expected auto or one of {', '.join(known)}")
        source = open_source(model, checkpoint)
        source = replace(source, threads=threads, device=device).with_work(pictures, size or source.sizes[0])
        from digseg_engine.runtime.choice import Task, choose, named

        if backend != "auto":
            return cls(source, named(known[backend], source))
        verdict, chosen = choose(source, Task(size or source.sizes[0], batch, prompts))
        wrong = tuple(f"{row.backend}: {row.reason}" for row in verdict.rows if row.usable and not row.right)
        return cls(source, chosen, wrong)

    @property
    def bundle(self) -> Bundle:
        """The bundle. Raises BackendError for an engine loaded from a checkpoint alone."""
        return self.source.need_bundle(self.backend.name)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Forget cached prompts; sessions and weights go with the last reference to the engine."""
        self.prompts.clear()
        self._refiner = None

    def segment(
        self, image: object, prompts: Sequence[str], size: int | None = None, refine: int = 0, steps: int = 4, seed: int = 0,
        threshold: float = 0.5, labels: str = "parts", keep_masks: bool = True,
    ) -> Segmentation:  # fmt: skip
        """One mask per prompt.

        image: path, Pillow picture, uint8 array or DLPack tensor [H, W, 3] RGB. prompts: K texts. size: pixels of the
        longer side the model works at (default: what it was trained for). refine: go over the `refine` most confident
        masks with `steps` steps of the reference (needs a checkpoint; the same seed gives the same masks). threshold,
        labels, keep_masks: which pixels belong to a mask, what the label map shows where masks meet, and whether the
        full-size masks stay in memory; see `labels.Rules`.
        Raises InputError for a picture or prompt it cannot use, UsageError for a size or steps out of range.
        """
        rules = Rules(threshold, labels, keep_masks)
        return self.segment_batch([image], prompts, size, Quality(refine, steps, seed), rules)[0]

    def segment_batch(
        self, images: Sequence[object], prompts: Sequence[str], size: int | None = None, quality: Quality = Quality(),
        rules: Rules = USUAL,
    ) -> list[Segmentation]:  # fmt: skip
        """The same prompts about several pictures; pictures of one working shape go through the model together."""
        clock = _Clock(len(images))
        # 1 check the input
        texts = check_prompts(prompts)
        longer = self._working_size(size)
        if quality.refine < 0:
            raise UsageError(f"the number of prompts to refine must be 0 or more, got {quality.refine}")
        reference = self._reference() if quality.refine else None
        pictures = [as_picture(image) for image in images]  # B x [H, W, 3]
        clock.lap("decode")
        # 2 fit the pictures
        canvases = [
            fit(picture.pixels, longer, self.stride, self._bucket(longer)) for picture in pictures
        ]  # B x pixels [1, 3, Hc, Wc]
        clock.lap("fit")
        # 3 prompts, encoded once each
        text = self.prompts.fold(texts)  # [K, S, H, d, L], [K, S, H, L, Co], [K, L]
        clock.lap("text")
        # 4 the model: every picture once, all prompts together
        logits, notes = self._answer(canvases, *text)  # B x [K, h', w']
        clock.lap("model")
        # 5 the reference on the most confident prompts, when asked for
        planes = [list(one) for one in logits]
        refined: list[tuple[int, ...]] = [()] * len(images)
        if reference is not None:
            both = [self._refine(reference, canvas, texts, one, quality) for canvas, one in zip(canvases, logits)]
            planes, refined = [one for one, _ in both], [which for _, which in both]
            clock.lap("refine")
        # 6 back to each picture's own pixels: masks [K, H, W], scores [K], label map [H, W]
        frames = [canvas.frame for canvas in canvases]
        found = [
            label(one, partial(unfit_plane, frame), frame.original, rules) for one, frame in zip(planes, frames)
        ]  # B x Labelled
        clock.lap("label")
        about = About.of(self.source, self.backend.detail, longer, rules, self.fallbacks + notes)
        return [
            Segmentation(tuple(texts), picture, answer, raw, tuple(final), frame, about, dict(clock.seconds), which)
            for picture, answer, raw, final, frame, which in zip(pictures, found, logits, planes, frames, refined)
        ]

    def stream(
        self, images: Iterable[object], prompts: Sequence[str], size: int | None = None, batch: int = 1,
        rules: Rules = USUAL,
    ) -> Iterator[Segmentation]:  # fmt: skip
        """Results in the order of `images`, which may be endless: the next `batch` pictures are decoded while the model
        works on these. Raises at the first picture that cannot be used."""
        from concurrent.futures import ThreadPoolExecutor

        left = iter(images)

        def decoded() -> list[object]:
            return [as_picture(image) for image in islice(left, batch)]

        if batch < 1:
            raise UsageError(f"a batch must hold at least 1 picture, got {batch}")
        with ThreadPoolExecutor(1, "digseg-decode") as ahead:
            coming = ahead.submit(decoded)
            while pictures := coming.result():
                coming = ahead.submit(decoded)
                yield from self.segment_batch(pictures, prompts, size, rules=rules)

    def segment_tiles(
        self, image: object, prompts: Sequence[str], output: Path | str, stem: str = "tiled", tile: int = 512,
        overlap: float = 0.25, size: int | None = None, masks: bool = False, threshold: float = 0.5,
    ) -> TiledSegmentation:  # fmt: skip
        """A picture of any size in overlapping tiles with blended seams; memory depends on the tile alone.

        image: as for `segment`, or the path of a `.npy` array or RGB TIFF, which are read piece by piece.
        tile: pixels per side; size: pixels the model works at (default: the tile's own). Label map, overview, JSON and,
        with masks=True, all masks are written under `output`. Raises UsageError for sizes that do not fit.
        """
        from digseg_engine.runtime.large import open_windows
        from digseg_engine.runtime.tiles import Tiling, segment_tiles

        texts = tuple(check_prompts(prompts))
        tiling = Tiling(tile, overlap, size)
        tiling.check(self.stride)
        text = self.prompts.fold(texts)
        about = About.of(self.source, self.backend.detail, tile, Rules(threshold), self.fallbacks)
        path = str(image) if isinstance(image, (str, Path)) else None
        return segment_tiles(open_windows(image), self.runner, text, texts, tiling, self.stride, Path(output), stem, masks,
                             about, path)  # fmt: skip

    def logits(self, pixels: Any, prompts: Sequence[str]) -> Any:
        """Logits [B, K, h', w'] of pixels [B, 3, H, W] float32 in -1..1, sides multiples of the stride; see `tensors`."""
        return logits_of(self.backend, self.stride, pixels, self.prompts.fold(check_prompts(prompts)))

    def _working_size(self, size: int | None) -> int:
        longer = self.image_size if size is None else size
        if not 2 * self.stride <= longer <= 4096:
            raise UsageError(f"working size must be {2 * self.stride} to 4096 pixels, got {longer}")
        return longer

    def _bucket(self, longer: int) -> int:
        """Working pictures are padded to multiples of this: a quarter of the longer side where shapes are compiled."""
        return max(self.stride, longer // 4 // self.stride * self.stride) if self.backend.fixed_shapes else self.stride

    def _answer(self, canvases: list[Canvas], *text: Array) -> tuple[list[Array], tuple[str, ...]]:
        """Logits [K, h', w'] of every canvas; canvases of one shape share a run."""
        shapes: dict[tuple[int, ...], list[int]] = {}
        for i, canvas in enumerate(canvases):
            shapes.setdefault(canvas.pixels.shape, []).append(i)
        answers: dict[int, Array] = {}
        notes: tuple[str, ...] = ()
        for members in shapes.values():
            together = np.concatenate([canvases[i].pixels for i in members])
            logits, noted = self.runner.segment(together, *text)
            answers.update(zip(members, logits))
            notes += noted
        return [answers[i] for i in range(len(canvases))], notes

    def _refine(
        self, reference: Any, canvas: Canvas, texts: list[str], logits: Array, quality: Quality
    ) -> tuple[list[Array], tuple[int, ...]]:
        """Planes with the most confident ones replaced by the reference's, and which those are."""
        mean = np.array([float(one[one > 0].mean()) if (one > 0).any() else -np.inf for one in logits])
        order = [int(k) for k in np.argsort(-mean, kind="stable") if np.isfinite(mean[k])]
        which = sorted(order[: quality.refine])
        planes = list(logits)
        if which:
            ids, mask = self.prompts.tokenizer.encode([texts[k] for k in which])
            better = reference(canvas.pixels, ids, mask, logits[which], quality.steps, quality.seed)
            for k, plane in zip(which, better):
                planes[k] = plane
        return planes, tuple(which)

    def _reference(self) -> Any:
        """The reference of the checkpoint, loaded at the first use."""
        with self._lock:
            if self._refiner is None:
                folder = self.source.need_checkpoint("refine")
                from digseg_engine.runtime.backends.torch_backend import checkpoint_at, device

                loaded = checkpoint_at(folder)
                from digseg_engine.model.refine import Refiner

                self._refiner = Refiner(loaded, device())
            return self._refiner


class _Clock:
    """Seconds per stage, shared equally by the pictures of a batch."""

    def __init__(self, pictures: int) -> None:
        self.seconds: dict[str, float] = {}
        self._share, self._last = max(1, pictures), time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self._last = (now - self._last) / self._share, now
