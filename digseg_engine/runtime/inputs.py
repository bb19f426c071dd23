"""Arguments of commands to pictures, prompts and output folders. Torch-free."""

from __future__ import annotations

import glob
import io
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from digseg_engine.data.storage import files_at, find_blob, remote
from digseg_engine.errors import InputError
from digseg_engine.folders import check_output
from digseg_engine.runtime.saving import is_ours

__all__ = ["FarPicture", "Found", "check_output", "find_pictures", "read_prompts", "several_in_one"]


@dataclass(frozen=True)
class Found:
    """Pictures, each once, in order, and what was left out on the way, in words."""

    paths: list[Path | FarPicture]
    notes: list[str]


@dataclass(frozen=True)
class FarPicture:
    """A picture at an address that fsspec reaches, read as a file of this machine is (`reading.PictureFile`)."""

    address: str

    def __str__(self) -> str:
        return self.address

    @property
    def _path(self) -> PurePosixPath:
        return PurePosixPath(unquote(urlsplit(self.address, allow_fragments=False).path))

    @property
    def name(self) -> str:
        return self._path.name

    @property
    def stem(self) -> str:
        return self._path.stem

    @property
    def suffix(self) -> str:
        return self._path.suffix

    @property
    def parent(self) -> PurePosixPath:
        return self._path.parent

    def exists(self) -> bool:
        return True  # `open` says what is wrong, after one request instead of three

    def is_file(self) -> bool:
        return True

    def open(self, mode: Literal["rb"] = "rb") -> Any:
        """All of it, in memory: once across the network, whatever a decoder reads how often."""
        blob = find_blob(self.address)
        return io.BytesIO(blob.read(0, blob.size))


def find_pictures(arguments: list[str], recursive: bool = False) -> Found:
    """Files named, found in folders (with recursive: in their folders too) or matched by patterns.

    In folders and patterns hidden files and results of this program are left out; a named file is taken as it is and
    judged when read. Raises InputError when a folder or pattern yields nothing, or a word is no file and looks like a
    prompt.
    """
    from digseg_engine.images import SUFFIXES

    found: dict[Path | FarPicture, None] = {}
    left_out: Counter[str] = Counter()
    folders = 0
    for argument in arguments:
        path = Path(argument)
        inside: list[Any]
        if remote(argument):
            inside = _far(argument, recursive, left_out)
        elif path.is_dir():
            inside = list(_usable(_files(path, recursive), left_out))
            folders += 0 if recursive else sum(1 for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
            if not inside:
                hint = "" if recursive or not folders else "; its folders are looked into with --recursive"
                raise InputError(f"folder {path} holds no picture{_said(left_out)}; expected files ending in "
                                 f"{', '.join(SUFFIXES)}{hint}")  # fmt: skip
        elif glob.has_magic(argument) and not path.exists():
            matched = sorted(Path(name) for name in glob.glob(argument, recursive=True) if Path(name).is_file())
            inside = [path for path in matched if not _own_result(path)]
            left_out["results of this program"] += len(matched) - len(inside)
            if not inside:
                raise InputError(
                    f"pattern {argument} matches no picture{_said(left_out)}; check it, or quote it for this program to expand"
                )
        else:
            if not path.suffix and not path.exists():
                raise InputError(
                    f"{path}: file not found; if it is meant as something to find, repeat -p for it: -p {path}"
                )
            inside = [path]
        found.update(dict.fromkeys(inside))
    notes = [f"left out{_said(left_out).removeprefix(',')}"] if left_out.total() else []
    notes += [f"folders inside ({folders}) were not looked into; --recursive does that"] if folders else []
    return Found(list(found), notes)


def _far(argument: str, recursive: bool, left_out: Counter[str]) -> list[FarPicture]:
    """The picture at an address, those in a folder there, or those that a pattern matches. Raises InputError when there
    is none."""
    from digseg_engine.images import SUFFIXES

    if FarPicture(argument).suffix.lower() in SUFFIXES and not glob.has_magic(argument.partition("?")[0]):
        return [FarPicture(argument)]
    inside = []
    for each in map(FarPicture, files_at(argument, recursive)):
        if each.name.startswith("."):
            left_out["hidden"] += 1
        elif each.suffix.lower() in SUFFIXES:
            inside.append(each)
        else:
            left_out[each.suffix or "without an ending"] += 1
    if not inside:
        raise InputError(
            f"{argument} holds no picture{_said(left_out)}; expected files ending in {', '.join(SUFFIXES)}"
        )
    return inside


def _files(folder: Path, recursive: bool) -> Iterator[Path]:
    """Files of a folder in order; hidden folders are not entered. Raises InputError for a folder that cannot be read."""
    try:
        inside = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"folder {folder} cannot be read: {error.strerror}; check its permissions") from error
    yield from (path for path in inside if path.is_file())
    if recursive:
        for path in inside:
            if path.is_dir() and not path.is_symlink() and not path.name.startswith("."):
                yield from _files(path, True)


def _usable(files: Iterable[Path], left_out: Counter[str]) -> Iterator[Path]:
    """Those files that are pictures to work on; counts the others by kind."""
    from digseg_engine.images import SUFFIXES

    for path in files:
        if path.name.startswith("."):
            left_out["hidden"] += 1
        elif _own_result(path):
            left_out["results of this program"] += 1
        elif path.suffix.lower() in SUFFIXES:
            yield path
        else:
            left_out[path.suffix or "without an ending"] += 1


def _own_result(path: Path) -> bool:
    return path.suffix.lower() in (".png", ".json") and is_ours(path)


def _said(left_out: Counter[str]) -> str:
    return ", ".join(["", *(f"{count} {kind}" for kind, count in left_out.items() if count)])


def read_prompts(given: list[str], file: Path | None) -> list[str]:
    """Prompts of the command line, then those of a file: one a line, blank lines and lines that begin with # left out.

    Raises InputError for a file that cannot be read or is not UTF-8.
    """
    if file is None:
        return list(given)
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"prompts file {file} cannot be read: {reason}; expected one prompt a line") from error
    return [*given, *(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))]


def several_in_one(prompts: Iterable[str]) -> list[str]:
    """Prompts with a comma, which other programs take for several and this one for one."""
    return [prompt for prompt in prompts if "," in prompt]
