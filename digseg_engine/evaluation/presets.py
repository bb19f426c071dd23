"""How well-known benchmarks are scored: `assets/protocols.json`, one preset per protocol.

A preset says which layout and split of the data are scored, how pictures are shown, and which figure is the benchmark's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from digseg_engine.errors import InputError, UsageError
from digseg_engine.evaluation.views import Views

if TYPE_CHECKING:
    from digseg_engine.evaluation.metrics import Scores

TABLE = Path(__file__).resolve().parent.parent / "assets" / "protocols.json"
FIGURES = {"miou": "mIoU", "dice": "mean Dice", "thresholded_jaccard": "mean IoU, 0 below 0.65"}


@dataclass(frozen=True)
class Protocol:
    """layouts: those that fit, none for any; split: None for the one that is held out; pictures: in that split,
    where it is fixed; many: the data are a folder of data sets; figure: a method of `Score` without arguments, one of FIGURES."""

    name: str
    title: str
    note: str
    figure: str
    layouts: tuple[str, ...] = ()
    split: str | None = None
    pictures: int | None = None
    many: bool = False
    slide: bool = False
    short_side: int | None = None

    def views(self, given: Views) -> Views:
        """How pictures are shown: as the protocol says, scales and mirroring as they were asked for."""
        return replace(given, slide=self.slide, short_side=self.short_side)

    def layout_of(self, folder: Path, asked: str | None) -> str | None:
        """The layout of a folder. Raises UsageError for one that the protocol does not score."""
        if not self.layouts:
            return asked
        from digseg_engine.data.layouts import OWN, find_layout, known_layout, recognise

        found = asked or recognise(folder)
        if found in self.layouts:
            return found
        if found != OWN:
            raise UsageError(f"--protocol {self.name} scores {' or '.join(self.layouts)}; {folder} is {found}")
        names = set(find_layout(folder, found)[0].table.names)
        fitting = [layout for layout in self.layouts if set(known_layout(layout).table.names) == names]
        if (
            not fitting
        ):  # pictures of the benchmark may be brought into the project's own layout, with all of its classes
            wanted = known_layout(self.layouts[0]).table.names
            raise UsageError(f"--protocol {self.name} scores the {len(wanted)} classes of {self.title.split(':')[0]} "
                             f"({_some(wanted)}); {folder} has {_some(sorted(names))}; leave --protocol out")  # fmt: skip
        return found

    def shortfall(self, pictures: int) -> str:
        """What must be said where fewer pictures were scored than the benchmark has."""
        if not self.pictures or pictures >= self.pictures:
            return ""
        return f"the benchmark has {self.pictures} pictures, {pictures} were scored: no figure to compare with others"

    def folders(self, data: Path) -> list[Path]:
        """The data sets to score. Raises InputError when a folder that should hold some holds none."""
        if not self.many:
            return [data]
        found = [path for path in sorted(data.iterdir()) if path.is_dir() and _is_dataset(path)]
        if not found:
            raise InputError(
                f"{data} holds no folder that is a data set; --protocol {self.name} scores every one it finds there"
            )
        return found

    def result(self, scores: Mapping[str, Scores]) -> float:
        """The benchmark's figure: over several data sets the mean of theirs."""
        values = [float(getattr(outcome.together, self.figure)()) for outcome in scores.values()]
        return sum(values) / len(values)

    def __str__(self) -> str:
        return f"{self.title}: {self.note}"


def protocol_names() -> tuple[str, ...]:
    return tuple(json.loads(TABLE.read_text(encoding="utf-8")))


def read_protocol(name: str) -> Protocol:
    """A preset by name. Raises UsageError for an unknown one."""
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    if name not in table:
        raise UsageError(f"unknown protocol {name!r}; expected one of {', '.join(table)}")
    body = dict(table[name])
    return Protocol(name, **{**body, "layouts": tuple(body.get("layouts", ()))})


def _some(names: Sequence[str]) -> str:
    return ", ".join([*names[:3], *(["..."] if len(names) > 3 else [])])


def _is_dataset(folder: Path) -> bool:
    from digseg_engine.data.layouts import recognise

    try:
        recognise(folder)
    except InputError:
        return False
    return True
