"""Where data sets keep pictures and masks: one description per layout, listing of pairs, recognition.

A layout is data (`assets/datasets/NAME.json`): per split, parts with a pattern for pictures and one for masks, and
optionally a list of names. `{}` in a pattern stands for the name, folders included.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from digseg_engine.data.classes import EXAMPLE, ClassTable, composed, parse_classes, read_classes
from digseg_engine.errors import InputError, UsageError
from digseg_engine.reading import SUFFIXES as PICTURES
from digseg_engine.reading import PictureFile

TABLES = Path(__file__).resolve().parent.parent / "assets" / "datasets"
OWN = "folder"
SHARDS = "shards"  # own data in tar files
CLASSES_FILE = "classes.json"


class PackedFile(PictureFile, Protocol):
    """A file inside another one; `state` changes with its contents."""

    @property
    def state(self) -> str: ...


@dataclass(frozen=True)
class Record:
    """One labelled picture. The files are where they must be, whether they are there or not."""

    name: str
    image: Path | PackedFile
    mask: Path | PackedFile

    def state(self) -> str:
        """What tells this picture from every other one, and from itself when it was changed."""
        if isinstance(self.image, Path):
            about = self.image.stat()
            return f"{self.image}/{about.st_size}/{about.st_mtime_ns}"
        return self.image.state


@dataclass(frozen=True)
class Part:
    """Patterns relative to the data set's folder; a pattern that ends in `{}` takes any picture suffix."""

    images: str
    masks: str
    listing: str | None = None
    name: str = "{}"

    def present(self, root: Path) -> bool:
        folders = all((root / _folder(pattern)).is_dir() for pattern in (self.images, self.masks))
        return folders and (self.listing is None or (root / self.listing).is_file())

    def __str__(self) -> str:
        where = f"{_folder(self.images)}/ with {_folder(self.masks)}/"
        return where if self.listing is None else f"{where} and {self.listing}"


@dataclass(frozen=True)
class Layout:
    """One known layout; `splits` maps a split to its parts, "all" being the one of an undivided data set."""

    name: str
    title: str
    table: ClassTable
    splits: dict[str, tuple[Part, ...]]
    inside: tuple[str, ...] = ("",)
    marks: tuple[str, ...] = ()
    label_names: str | None = None

    @property
    def own(self) -> bool:
        """Is the table the user's own, not that of a known data set?"""
        return self.name in (OWN, SHARDS)

    def root(self, folder: Path) -> Path | None:
        """The folder itself or the usual folder inside it, whichever holds a part of any split."""
        parts = [part for parts in self.splits.values() for part in parts]
        for inside in self.inside:
            if any(part.present(folder / inside) for part in parts):
                return folder / inside
        return None

    def recognised(self, folder: Path) -> bool:
        root = self.root(folder)
        return root is not None and (not self.marks or any((root / mark).is_file() for mark in self.marks))

    def __str__(self) -> str:
        return f"{self.name}: {next(iter(self.splits.values()))[0]}" + (f" and {self.marks[0]}" if self.marks else "")


def layout_names() -> tuple[str, ...]:
    """All layouts: that of own data first, then the known data sets."""
    return (OWN, *sorted(path.stem for path in TABLES.glob("*.json")))


@cache
def known_layout(name: str) -> Layout:
    """A layout from the tables. Raises UsageError for an unknown name."""
    if name not in layout_names()[1:]:
        raise UsageError(f"unknown layout {name!r}; expected one of {', '.join(layout_names())}")
    body: dict[str, Any] = json.loads((TABLES / f"{name}.json").read_text(encoding="utf-8"))
    where, title, label_names = body.pop("layout"), body.pop("title"), body.pop("label_names", None)
    splits = {split: tuple(Part(**part) for part in parts) for split, parts in where["splits"].items()}
    table = parse_classes(body, f"the table of {name}")
    return Layout(name, title, table, splits, tuple(where["inside"]), tuple(where.get("marks", ())), label_names)


def own_layout(folder: Path) -> Layout:
    """The layout of own data: images/, masks/, classes.json; sub-folders of images/ are splits. Raises InputError."""
    missing = [name for name in ("images", "masks") if not (folder / name).is_dir()]
    if missing:
        raise InputError(f"{folder} has no folder {missing[0]}/; expected images/, masks/ and {CLASSES_FILE}")
    table = read_classes(folder / CLASSES_FILE)
    inside = sorted(path for path in (folder / "images").iterdir() if not path.name.startswith("."))
    splits: dict[str, tuple[Part, ...]] = {}
    if inside and all(path.is_dir() for path in inside):
        splits = {
            p.name: (Part(f"images/{p.name}/{{}}", f"masks/{p.name}/{{}}", None, f"{p.name}/{{}}"),) for p in inside
        }
    return Layout(OWN, str(folder), table, splits or {"all": (Part("images/{}", "masks/{}"),)})


def find_layout(folder: Path, name: str | None = None) -> tuple[Layout, Path]:
    """(layout, its root) of a data set, by name or recognised. Raises InputError or UsageError saying what was looked for."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; expected a folder of labelled pictures")
    if name is None:
        name = recognise(folder)
    layout = own_layout(folder) if name == OWN else known_layout(name)
    root = folder if name == OWN else layout.root(folder)
    if root is None:
        parts = "; ".join(str(part) for parts in layout.splits.values() for part in parts)
        raise InputError(f"{folder} is not laid out as {name}; looked for {parts}")
    if layout.label_names:
        layout = replace(layout, table=_numbered(layout.table, root / layout.label_names))
    return _with_lists(layout, root), root


def recognise(folder: Path) -> str:
    """The name of the layout of a folder. Raises InputError when none or several fit."""
    if (folder / CLASSES_FILE).is_file():
        return OWN
    if not any(folder.iterdir()):
        raise InputError(f"{folder} is empty; expected images/, masks/ and {CLASSES_FILE}, or a known data set")
    fitting = [name for name in layout_names()[1:] if known_layout(name).recognised(folder)]
    if len(fitting) > 1:
        raise InputError(f"{folder} fits several layouts: {', '.join(fitting)}; choose one with --layout")
    if not fitting:
        if all((folder / name).is_dir() for name in ("images", "masks")):
            raise InputError(f"{folder} has images/ and masks/ but no {CLASSES_FILE}; add one, such as {EXAMPLE}, "
                             "or name the layout with --layout")  # fmt: skip
        looked = "; ".join(str(known_layout(name)) for name in layout_names()[1:])
        raise InputError(f"{folder} holds no data set this program recognises; looked for {OWN}: images/, masks/ and "
                         f"{CLASSES_FILE}; {looked}; name the layout with --layout")  # fmt: skip
    return fitting[0]


def _with_lists(layout: Layout, root: Path) -> Layout:
    """An undivided data set is split by the files splits/NAME.txt, train.txt, val.txt and test.txt, if there are any."""
    if set(layout.splits) != {"all"}:
        return layout
    lists = [*sorted(root.glob("splits/*.txt")), *(root / f"{name}.txt" for name in ("train", "val", "test"))]
    named = {path.stem: str(path.relative_to(root)) for path in lists if path.is_file()}
    parts = layout.splits["all"]
    return replace(
        layout, splits={s: tuple(replace(p, listing=at) for p in parts) for s, at in named.items()} | layout.splits
    )


def _numbered(table: ClassTable, path: Path) -> ClassTable:
    """Ids of the classes by their names in a file of lines "12: name"; every other line's id is ignored."""
    if not path.is_file():
        raise InputError(f"{path} not found; expected the data set's list of label names beside its other files")
    pairs = [line.split(":", 1) for line in path.read_text(encoding="utf-8").splitlines() if ":" in line]
    ids = {name.strip(): int(number) for number, name in pairs if number.strip().isdigit()}
    missing = [name for name in table.names if name not in ids]
    if missing:
        raise InputError(f"{path} does not list the label {missing[0]!r}; expected the original file of the data set")
    classes = tuple(replace(label_class, ids=(ids[label_class.name],)) for label_class in table.classes)
    taken = {label_class.ids[0] for label_class in classes}
    return replace(table, classes=classes, ignore=tuple({0, *ids.values()} - taken), source=str(path))


def list_records(part: Part, root: Path) -> list[Record]:
    """All pairs of a part in the order of their names, or of its list; listed files need not exist."""
    images = _index(root, part.images)
    masks = _index(root, part.masks)
    keys = sorted(images)
    if part.listing is not None:
        lines = (root / part.listing).read_text(encoding="utf-8").splitlines()
        keys = list(dict.fromkeys(composed(_bare(line.strip())) for line in lines if line.strip()))
        if outside := [key for key in keys if _leads_out(key)]:
            raise InputError(f"{root / part.listing} lists {outside[0]!r:.60}, which leads out of the data set; expected names "
                             f"in {_folder(part.images)}/; correct the list")  # fmt: skip
    picture, mask = (pattern if Path(pattern).suffix else f"{pattern}.png" for pattern in (part.images, part.masks))
    return [
        Record(part.name.format(k), images.get(k, root / picture.format(k)), masks.get(k, root / mask.format(k)))
        for k in keys
    ]


def stray_masks(layout: Layout, root: Path, split: str) -> list[str]:
    """A line for every mask of own data that has no picture (known data sets come with more masks than pictures)."""
    problems = []
    for part in layout.splits.get(split) or [p for parts in layout.splits.values() for p in parts]:
        if layout.name == OWN and part.listing is None:
            images = _index(root, part.images)
            strays = [path for key, path in _index(root, part.masks).items() if key not in images]
            problems += [
                f"{path} has no picture; expected one of its name in {root / _folder(part.images)}" for path in strays
            ]
    return problems


def _leads_out(name: str) -> bool:
    """Is a listed name a path to somewhere else, on any system?"""
    return name.startswith(("/", "\\")) or ":" in name[:2] or ".." in name.replace("\\", "/").split("/") or "\0" in name


def _bare(name: str) -> str:
    return name[: -len(Path(name).suffix)] if Path(name).suffix.lower() in PICTURES else name


def _folder(pattern: str) -> str:
    return pattern.split("{}")[0].rpartition("/")[0]


def _index(root: Path, pattern: str) -> dict[str, Path]:
    """Name -> file for every file that fits a pattern."""
    folder, ending = root / _folder(pattern), pattern.split("{}")[1]
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if any(piece.startswith(".") for piece in relative.parts):
            continue
        suffix = ending or path.suffix
        if not path.name.endswith(suffix) or (not ending and suffix.lower() not in PICTURES):
            continue
        key = composed(relative.as_posix()[: -len(suffix)])  # a name copied from another system may be spelled apart
        if key in found:
            raise InputError(f"{path} and {found[key].name} have the same name; expected one file per name in {folder}")
        found[key] = path
    return found
