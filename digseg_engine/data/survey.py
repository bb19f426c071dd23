"""A look at a whole data set: counts per class, every problem there is, and a sheet of labels drawn over pictures."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rich.table import Table
from rich.text import Text

from digseg_engine.data.checks import (
    DARK,
    Counts,
    dark_note,
    label_counts,
    split_notes,
    unread_files,
    white_among_others,
    white_ignored,
)
from digseg_engine.data.classes import IGNORE, ClassTable
from digseg_engine.data.datasets import Dataset, Item, dataset_splits, open_dataset
from digseg_engine.data.layouts import OWN
from digseg_engine.errors import InputError
from digseg_engine.words import counted

CELL, MARGIN, LINE, COLUMNS = 256, 8, 16, 3


@dataclass
class Survey:
    """Counts [N, C + 2] per picture: every class, then background, then ignored; zeros for pictures that cannot be used.

    `good` are the numbers of sound pictures, `problems` errors, `notes` what is allowed but probably a mistake.
    """

    counts: Counts
    good: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def pixels(self) -> Counts:
        return self.counts.sum(0)

    @property
    def pictures(self) -> Counts:
        return np.asarray((self.counts > 0).sum(0))

    def spread(self, count: int) -> list[int]:
        """At most `count` sound pictures, evenly spread over the data set."""
        places = np.linspace(0, len(self.good) - 1, min(count, len(self.good)))
        return [self.good[round(place)] for place in places]


def survey(dataset: Dataset, tick: Callable[[], None] = lambda: None, workers: int = 2) -> Survey:
    """Read every picture and mask; problems are collected, not raised."""
    n = len(dataset.names)
    found, dark = Survey(np.zeros((len(dataset), n + 2), np.int64)), []

    def check(i: int) -> tuple[Counts, bool] | str:
        try:
            item = dataset[i]
        except InputError as error:
            return str(error)
        return label_counts(item.ids, n), int(item.image.max()) < DARK

    with ThreadPoolExecutor(workers) as pool:
        for i, checked in enumerate(pool.map(check, range(len(dataset)))):
            tick()
            if isinstance(checked, str):
                found.problems.append(checked)
                continue
            found.good.append(i)
            found.counts[i] = checked[0]
            if checked[1]:
                dark.append(dataset.records[i].name)
    found.problems += dataset.stray_masks()
    if dataset.layout.own:
        if problem := white_ignored(dataset.table, found.pixels):
            found.problems.append(problem)
        else:
            names = [dataset.records[i].name for i in found.good]
            found.notes += white_among_others(dataset.table, found.counts[found.good], names)
            found.notes += split_notes(dataset.table, _by_split(dataset, found))
    if dataset.layout.name == OWN:
        found.notes += unread_files([Path(dataset.root) / "images"])
    found.notes += dark_note(dark, len(dataset))
    return found


def _by_split(dataset: Dataset, found: Survey) -> dict[str, tuple[Counts, list[str]]]:
    """Counts and names of the sound pictures of every split that was looked at."""
    places = {dataset.records[i].image: i for i in found.good}
    splits = {}
    for split in dataset_splits(dataset.root, dataset.layout.name) if dataset.split == "all" else (dataset.split,):
        own = (
            dataset if split == dataset.split else open_dataset(dataset.root, dataset.layout.name, split, strict=False)
        )
        numbers = [places[record.image] for record in own.records if record.image in places]
        splits[split] = found.counts[numbers], [dataset.records[i].name for i in numbers]
    named = {split: kept for split, kept in splits.items() if split != "all"}
    return named or splits


def split_line(dataset: Dataset) -> str:
    """The splits on disk with their numbers of pictures."""
    names = dataset_splits(dataset.root, dataset.layout.name)
    sizes = {name: len(open_dataset(dataset.root, dataset.layout.name, name, strict=False)) for name in names}
    named = {name: size for name, size in sizes.items() if name != "all"}
    return "splits: " + ", ".join(f"{name} {size}" for name, size in named.items()) if named else "no splits"


def class_table(dataset: Dataset, found: Survey) -> Table:
    """Pixels and pictures per class; classes that never occur are counted in the last line."""
    title = f"{dataset.root}: {dataset.layout.name}, split {dataset.split}, {counted(len(dataset), 'picture')}"
    table = Table(title=title, title_justify="left")
    for column in ("class", "prompt", "pictures", "pixels", "share"):
        table.add_column(column, justify="left" if column in ("class", "prompt") else "right")
    labels = [(query.name, query.text) for query in dataset.queries]
    labels += [("(background)", ""), ("(ignored)", "")]
    total = max(1, int(found.pixels.sum()))
    for (name, prompt), pixels, pictures in zip(labels, found.pixels.tolist(), found.pictures.tolist()):
        if pixels:
            cells = (name, prompt, str(pictures), str(pixels), f"{100 * pixels / total:.2f} %")
            table.add_row(*(Text(cell) for cell in cells))
    absent = int((found.pixels[:-2] == 0).sum())
    if absent:
        table.add_row(Text(f"({absent} more classes)"), "", "0", "0", "")
    return table


def class_colour(k: int, table: ClassTable | None = None) -> tuple[int, int, int]:
    """The class's own colour, if it has one; else neighbours in the list are far apart (hues by the golden ratio)."""
    if table is not None and table.classes[k].colours:
        colour = table.classes[k].colours[0]
        return colour >> 16, colour >> 8 & 255, colour & 255
    red, green, blue = colorsys.hsv_to_rgb(k * 0.618034 % 1, 0.75 if k % 2 else 0.95, 0.95 if k % 3 else 0.7)
    return round(255 * red), round(255 * green), round(255 * blue)


def contact_sheet(dataset: Dataset, numbers: list[int]) -> Image.Image:
    """Labels over pictures, three in a row, each with the names of its classes; ignored pixels are hatched."""
    cells = [_cell(dataset[i], dataset.table) for i in numbers]
    rows = [cells[i : i + COLUMNS] for i in range(0, len(cells), COLUMNS)]
    width = MARGIN + sum(cell.width + MARGIN for cell in max(rows, key=len))
    sheet = Image.new("RGB", (width, MARGIN + sum(max(cell.height for cell in row) + MARGIN for row in rows)), "white")
    top = MARGIN
    for row in rows:
        for n, cell in enumerate(row):
            sheet.paste(cell, (MARGIN + n * (CELL + MARGIN), top))
        top += max(cell.height for cell in row) + MARGIN
    return sheet


def _cell(item: Item, table: ClassTable) -> Image.Image:
    present = [int(k) for k in np.unique(item.ids) if k >= 0]
    picture = Image.fromarray(_tinted(item, present, table))
    scale = CELL / max(picture.size)
    smooth = Image.Resampling.BILINEAR if scale < 1 else Image.Resampling.NEAREST
    picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), smooth)
    cell = Image.new("RGB", (CELL, CELL + LINE * (1 + len(present))), "white")
    cell.paste(picture, (0, LINE))
    draw, font = ImageDraw.Draw(cell), ImageFont.load_default(11)
    draw.text((0, 0), item.name[-44:], "black", font)
    for n, k in enumerate(present):
        top = LINE + picture.height + n * LINE
        draw.rectangle((0, top + 3, 11, top + 14), fill=class_colour(k, table))
        share = 100 * float((item.ids == k).mean())
        draw.text((16, top + 2), f"{table.names[k]} {share:.1f} %"[:40], "black", font)
    return cell.crop((0, 0, CELL, LINE + picture.height + LINE * len(present)))


def _tinted(item: Item, present: list[int], table: ClassTable) -> NDArray[np.uint8]:
    canvas = item.image.astype(np.float32)
    for k in present:
        where = item.ids == k
        canvas[where] = 0.45 * canvas[where] + 0.55 * np.array(class_colour(k, table), np.float32)
    rows, columns = np.indices(item.ids.shape)
    step = max(2, max(item.ids.shape) // 64)
    canvas[(item.ids == IGNORE) & ((rows + columns) // step % 2 == 0)] = 0
    return canvas.astype(np.uint8)
