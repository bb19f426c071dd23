"""Pictures of any size in overlapping tiles with blended seams, in memory that does not grow with the picture.

Tiles are read, segmented and added to a ring of rows on disk (`blending.py`); rows that no later tile touches are
enlarged to pixels and written out. Label map and masks go to disk as NumPy arrays, to be opened with `mmap_mode="r"`.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from digseg_engine.errors import BackendError, UsageError
from digseg_engine.images import Float, Rgb, fit
from digseg_engine.runtime.blending import Ring, positions, ramp
from digseg_engine.runtime.labels import Rules, probability
from digseg_engine.runtime.large import Windows
from digseg_engine.runtime.presence import Asker
from digseg_engine.runtime.record import About, Answer, listed_presence, record, summary
from digseg_engine.runtime.saving import listed, make_folder, remove_stale, write_record
from digseg_engine.runtime.strips import TILED, StripWriter

COLUMNS = 2048  # pixels of a strip that are enlarged and written at once
FAINT = 4.0  # so far below the border are the logits of a prompt that is not in a tile


@dataclass(frozen=True)
class Tiling:
    """tile: pixels per side; overlap: share of it that neighbours have in common; size: pixels the model works at."""

    tile: int = 512
    overlap: float = 0.25
    size: int | None = None

    def check(self, stride: int) -> None:
        """Raises UsageError for sizes that do not fit the model or each other."""
        work = self.size or self.tile
        if work % stride or not 2 * stride <= work <= 4096:
            raise UsageError(
                f"tiles must be worked at a multiple of {stride} from {2 * stride} to 4096 pixels, got {work}"
            )
        if self.tile % work and work % self.tile:
            raise UsageError(
                f"a tile of {self.tile} pixels cannot be worked at {work}; expected a whole ratio of the two"
            )
        if not 0 <= self.overlap <= 0.5:
            raise UsageError(f"overlap must be 0 to 0.5 of a tile, got {self.overlap}")


def check_rule(labels: str) -> None:
    """Raises UsageError for a label rule that tiles do not have."""
    if labels != "strongest":
        raise UsageError(f"tiles label the strongest prompt, got the rule {labels!r}: which mask lies in another, or is smaller, "
                         "is known only when the whole picture was seen, and labels are written as tiles come; use strongest, "
                         "and keep the masks (--only masks,labels) to order them yourself")  # fmt: skip


def kinds_of(only: Collection[str] | None, masks: bool = False) -> frozenset[str]:
    """The kinds of files that are wanted. Raises UsageError for an unknown one."""
    known = {"overlay", "masks", "labels", "json"}
    if unknown := set(only or ()) - known:
        raise UsageError(f"cannot save {', '.join(sorted(unknown))}; expected some of {', '.join(sorted(known))}")
    return frozenset({*(TILED if only is None else only), *(("masks",) if masks else ())})


@dataclass(frozen=True, eq=False)
class TiledSegmentation:
    """Result of a picture in tiles; the arrays are on disk.

    files, of those that were wanted: label map `.npy` [H, W] (0 nothing, else 1 + number of the strongest prompt), JSON
    (always), overview PNG, `.masks.npy` bool [K, H, W]. areas [K] share of the picture; scores [K] mean probability inside
    each mask; answers: the same and more by prompt; timings: seconds per step.
    """

    prompts: tuple[str, ...]
    shape: tuple[int, int]
    tiles: int
    answers: tuple[Answer, ...]
    files: tuple[Path, ...]
    about: About
    tiling: Tiling
    timings: dict[str, float]
    picture: str | None = None

    def __repr__(self) -> str:
        return summary("TiledSegmentation", self.shape, self.answers, self.about, self.timings)

    @property
    def areas(self) -> tuple[float, ...]:
        return tuple(answer.area for answer in self.answers)

    @property
    def scores(self) -> tuple[float, ...]:
        return tuple(answer.score for answer in self.answers)

    @property
    def found(self) -> tuple[bool, ...]:
        """Which prompts count as found: those whose mask is no smaller than one logit of the model."""
        return tuple(answer.found for answer in self.answers)

    @property
    def backend(self) -> str:
        return self.about.backend

    @property
    def fallbacks(self) -> tuple[str, ...]:
        return self.about.notes

    @property
    def label_map(self) -> NDArray[Any]:
        """[H, W], mapped from disk. Raises UsageError when it was not written."""
        for path in self.files:
            if path.name.endswith(".labels.npy"):
                return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]
        raise UsageError("no label map was written of these tiles; ask for labels too")

    def as_dict(self) -> dict[str, Any]:
        """The schema of `Segmentation.as_dict`."""
        tiles = {"count": self.tiles, "side": self.tiling.tile, "overlap": self.tiling.overlap}
        return record(self.shape, self.answers, self.about, self.timings, self.picture, tiles=tiles)


def segment_tiles(
    windows: Windows, asker: Asker, prompts: tuple[str, ...], tiling: Tiling, folder: Path, stem: str,
    kinds: Collection[str] = TILED, about: About | None = None, picture: str | None = None,
) -> TiledSegmentation:  # fmt: skip
    """The whole pipeline; `asker` has the K prompts and contrast prompts behind them. Files of the `kinds` overlay, labels and
    masks, and the JSON, are written under `folder`, all or nothing."""
    tiling.check(asker.stride)
    make_folder(folder)
    seconds = {"read": 0.0, "model": 0.0, "blend": 0.0, "write": 0.0}
    about = about or About("", "", asker.runner.backend.detail, 0)
    border = about.rules.border
    about = replace(about, size=tiling.size or tiling.tile, rules=Rules(about.rules.threshold, "strongest"))
    writer = StripWriter(folder, stem, windows.shape, prompts, border, kinds)
    earlier = listed(writer.record)
    walk = TileWalk(windows, asker, tiling, seconds, border)
    try:
        with writer:
            for top, left, logits, rgb in walk.strips(folder):  # [K, h, w] at full size
                began = time.perf_counter()
                writer.write(top, left, logits, rgb)
                seconds["write"] += time.perf_counter() - began
            began = time.perf_counter()
    finally:
        windows.close()
    seconds["write"] += time.perf_counter() - began
    sure = None if walk.presence is None else probability(walk.presence)
    presence, there = listed_presence(sure, walk.there, walk.there.size)  # contrast prompts stand behind the others
    answers = tuple(
        Answer(prompt, area, int(pixels), score, box, bool(pixels >= walk.cell**2), of_prompt, in_it)
        for prompt, area, pixels, score, box, of_prompt, in_it in zip(
            prompts, writer.areas, writer.pixels, writer.scores, writer.boxes, presence, there
        )
    )
    notes = about.notes + getattr(windows, "notes", ()) + walk.notes
    written = [writer.files.get(kind) for kind in ("labels", "overview", "masks")]
    files = tuple(path for path in (written[0], writer.record, *written[1:]) if path is not None)
    done = TiledSegmentation(prompts, windows.shape, walk.tiles, answers, files, replace(about, notes=notes), tiling, seconds,
                             picture)  # fmt: skip
    write_record(writer.record, done.as_dict(), writer.files, [])
    remove_stale(folder, stem, earlier - {path.name for path in files})
    return done


class TileWalk:
    """Walks over the tiles of one picture, row by row, and yields finished pieces of full-size logits."""

    def __init__(
        self, windows: Windows, asker: Asker, tiling: Tiling, seconds: dict[str, float], border: float
    ) -> None:  # fmt: skip
        self.windows, self.asker, self.tiling, self.seconds = windows, asker, tiling, seconds
        # What is not in a tile may lie in its neighbour: there it votes no, and does not cut off what the neighbour sees.
        self.faint = border - FAINT
        self.presence: NDArray[np.float32] | None = None  # the highest logit of every prompt [K]
        self.there = np.zeros(asker.count, np.bool_)  # whether it is in any tile [K]
        self.notes: tuple[str, ...] = ()
        self.tiles = 0
        self.cell = 1  # pixels per logit, once the first tile has told

    def strips(self, folder: Path) -> Iterator[tuple[int, int, Float, Rgb]]:
        """(top, left, logits [K, h, w], pixels [h, w, 3]) in pixels; pieces cover the picture once, in order."""
        height, width = self.windows.shape
        first = self._logits(0, 0)  # tells the logits' resolution
        planes, grid = first.shape[0], first.shape[1]
        cell = self.tiling.tile / grid  # pixels per logit
        if cell != int(cell):
            raise BackendError(f"tiles of {self.tiling.tile} pixels give {grid} logits per side; expected a whole number of "
                               "pixels per logit; choose another --tile or --imgsz")  # fmt: skip
        self.cell = cell = int(cell)
        rows, columns = max(grid, -(-height // cell)), max(grid, -(-width // cell))
        overlap = round(grid * self.tiling.overlap)
        tops, lefts = (positions(length, grid, grid - overlap) for length in (rows, columns))
        weights = np.outer(*[ramp(grid, overlap)] * 2).astype(np.float32)
        ring, done = Ring(grid + 2, columns, planes, folder), 0
        try:
            for i, top in enumerate(tops):
                for left in lefts:
                    logits = first if (top, left) == (0, 0) else self._logits(top * cell, left * cell)
                    began = time.perf_counter()
                    ring.add(top, left, logits, weights)
                    self.seconds["blend"] += time.perf_counter() - began
                last = i + 1 == len(tops)
                final = rows if last else tops[i + 1]  # grid rows before this one are complete
                end = height if last else min(height, final * cell - cell // 2)  # bilinear needs the next row too
                yield from self._finished(ring, done, end, final, cell, columns)
                done = end
                if not last:
                    ring.clear(range(top + grid, tops[i + 1] + grid))
        finally:
            ring.close()

    def _logits(self, top: int, left: int) -> Float:
        """Logits [K, g, g] of the tile at a pixel position."""
        began = time.perf_counter()
        side = self.tiling.tile
        pixels = fit(self.windows.read(top, left, side, side), self.tiling.size or side, self.asker.stride).pixels
        self.seconds["read"] += time.perf_counter() - began
        began = time.perf_counter()
        found, notes = self.asker.about_pixels(pixels)
        self.seconds["model"] += time.perf_counter() - began
        self.tiles += 1
        self.notes += notes
        (logits,), (there,) = found.logits, found.there
        self.there |= there
        if found.presence is not None:
            self.presence = np.maximum(found.presence[0], -np.inf if self.presence is None else self.presence)
        if not there.all():
            logits[~there] = self.faint
        answer: Float = logits
        return answer

    def _finished(
        self, ring: Ring, top: int, bottom: int, final: int, cell: int, columns: int
    ) -> Iterator[tuple[int, int, Float, Rgb]]:
        """Pixel rows top..bottom, in pieces of COLUMNS pixels."""
        width = self.windows.shape[1]
        if bottom <= top:
            return
        r0, r1 = max(0, top // cell - 1), min(final, -(-bottom // cell) + 1)
        for left in range(0, width, COLUMNS):
            right = min(width, left + COLUMNS)
            c0, c1 = max(0, left // cell - 1), min(columns, -(-right // cell) + 1)
            began = time.perf_counter()
            logits = ring.mean(range(r0, r1), c0, c1)
            box = ((left / cell) - c0, (top / cell) - r0, (right / cell) - c0, (bottom / cell) - r0)
            full = np.stack([enlarge(plane, (bottom - top, right - left), box) for plane in logits])
            self.seconds["blend"] += time.perf_counter() - began
            yield top, left, full, self.windows.read(top, left, bottom - top, right - left)


def enlarge(plane: Float, shape: tuple[int, int], box: tuple[float, float, float, float]) -> Float:
    """The part `box` (left, top, right, bottom) of a plane, bilinear, at `shape` (height, width)."""
    picture = Image.fromarray(plane).resize((shape[1], shape[0]), Image.Resampling.BILINEAR, box=box)
    return np.asarray(picture, np.float32)
