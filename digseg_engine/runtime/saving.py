"""Results to files: each appears whole or not at all, carries our mark, and replaces nothing that lacks it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from digseg_engine.errors import OutputError
from digseg_engine.files import replacing, write_json
from digseg_engine.runtime.record import FORMAT

PALETTE = (
    (230, 57, 70), (29, 120, 216), (42, 157, 82), (244, 162, 28), (142, 68, 173), (0, 172, 193),
    (255, 112, 166), (124, 179, 66), (121, 85, 72), (63, 81, 181), (255, 214, 10), (84, 110, 122),
)  # fmt: skip
MARK = b"Software\0digseg-engine"
HEAD = 4096  # bytes of a PNG in which the mark is looked for
ARRAY_HEAD = 1088  # bytes before the numbers of a .npy of ours: filled with spaces, as no other program does it
QUICK = 1  # PNG compression level: a photo's overlay at the usual 6 takes several times as long and is a tenth smaller


def make_folder(folder: Path) -> None:
    """Raises OutputError where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder}: {error.strerror or error}; choose another") from error


def write_png(target: Path, picture: Image.Image) -> None:
    from digseg_engine import __version__

    about = PngImagePlugin.PngInfo()
    about.add_text("Software", f"digseg-engine {__version__}")
    with replacing(target) as path:
        picture.save(path, format="PNG", compress_level=QUICK, pnginfo=about)


def write_mask(target: Path, mask: NDArray[np.bool_]) -> None:
    """Grey PNG, 255 inside, 0 outside."""
    write_png(target, Image.fromarray(mask.view(np.uint8) * np.uint8(255)))


def write_labels(target: Path, labels: NDArray[Any], prompts: int) -> None:
    """PNG whose values are the labels: with a palette for up to 255 prompts, so that it can be looked at; else 16 bits."""
    if prompts > 255:
        write_png(target, Image.fromarray(labels.astype(np.uint16)))
        return
    picture = Image.fromarray(labels.astype(np.uint8))
    picture.putpalette([0, 0, 0, *(value for k in range(255) for value in PALETTE[k % len(PALETTE)])])
    write_png(target, picture)


def is_ours(path: Path) -> bool:
    """Whether a PNG, JSON or .npy file was written as a result by this program."""
    try:
        if path.suffix == ".json":
            return _is_record(json.loads(path.read_text(encoding="utf-8")))
        with path.open("rb") as file:
            if path.suffix == ".npy":
                return file.read(10) == array_head({})[:10]
            return MARK in file.read(HEAD)
    except (OSError, ValueError, RecursionError):
        return False


def array_head(about: dict[str, Any]) -> bytes:
    """What a .npy begins with (version 1.0): the mark is its length. about: descr, fortran_order, shape."""
    told = repr(about).encode("latin1")
    return b"\x93NUMPY\x01\x00" + (ARRAY_HEAD - 10).to_bytes(2, "little") + told.ljust(ARRAY_HEAD - 11) + b"\n"


def _is_record(body: Any) -> bool:
    if not isinstance(body, dict):
        return False
    older = {"backend", "seconds", "masks"} <= body.keys() or {"backend", "timings", "tiles"} <= body.keys()
    return older or body.get("format") == FORMAT


def check_targets(targets: Iterable[Path], record: Path) -> None:
    """Raises OutputError, before anything is written, for a file in the way that is not ours: an annotation of another tool,
    somebody's mask. Files beside an earlier record of ours count as ours."""
    known = is_ours(record)
    for target in targets:
        if os.path.lexists(target) and not known and not is_ours(target):
            raise OutputError(f"{target} is there and was not written by this program; nothing was changed; choose another "
                              "output folder")  # fmt: skip


# What a result answers, beside its prompts.
QUESTION = (
    "picture",
    "width",
    "height",
    "model",
    "working_size",
    "threshold",
    "label_rule",
    "against",
    "all_prompts",
    "refined",
    "tiles",
)


def listed(record: Path) -> set[str]:
    """Names of the files that an earlier record in this place lists; empty when there is none of ours."""
    try:
        body = json.loads(record.read_text(encoding="utf-8"))
        if not _is_record(body):
            return set()
        files = [*body["files"].values(), *(mask.get("file") for mask in body["masks"])]
        return {name for name in files if isinstance(name, str)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return set()


def still_right(record: Path, body: dict[str, Any]) -> tuple[dict[str, Path], list[Path | None]]:
    """(files by kind, mask of every prompt) of an earlier record in this place that answers the very same question with the
    same model: they are as right as when they were written. Nothing where it answers another."""
    none: list[Path | None] = [None] * len(body["masks"])
    try:
        before = json.loads(record.read_text(encoding="utf-8"))
        asked = [[mask["prompt"] for mask in each["masks"]] for each in (before, body)]
        if asked[0] != asked[1] or any(before.get(key) != body[key] for key in QUESTION):
            return {}, none
        files = {kind: record.with_name(name) for kind, name in before["files"].items()}
        masks = [record.with_name(mask["file"]) if mask.get("file") else None for mask in before["masks"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}, none
    return {k: p for k, p in files.items() if p.is_file()}, [p if p and p.is_file() else None for p in masks]


def remove_stale(folder: Path, stem: str, names: set[str]) -> None:
    """Delete results of an earlier run of the same picture: only plain names that begin with its stem and bear our mark."""
    for name in names:
        path = folder / name
        plain = Path(name).name == name and name.startswith(f"{stem}.") and not path.is_symlink()
        if plain and (is_ours(path) or path.suffix == ".npy"):
            path.unlink(missing_ok=True)


def name_files(body: dict[str, Any], files: dict[str, Path], masks: Sequence[Path | None]) -> dict[str, Any]:
    """The record with the names of the files that are written beside it."""
    body["files"] = {kind: path.name for kind, path in files.items()}
    for entry, path in zip(body["masks"], masks):
        if path is not None:
            entry["file"] = path.name
    return body


def write_record(target: Path, body: dict[str, Any], files: dict[str, Path], masks: Sequence[Path | None]) -> None:
    """The JSON, last: it names every file written beside it."""
    write_json(target, name_files(body, files, masks))
