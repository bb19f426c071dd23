"""What an export has finished, kept beside its destination until the bundle is there: the same command, run again after Ctrl-C,
a kill or a power cut, does not do it again.

    .NAME.tmp-export/             0700 and of this user, else it is not used; one export at a time has it
        writer                    the lock, and who has it
        STAGE.json                written last: key, facts, and the SHA-256 of every part
        STAGE.PART                traced and converted graphs, weights, PyTorch's answers

Right by content: a stage counts where its key is that of the export at hand (`export_key.py`) and its parts have their hashes;
everything else is removed. It goes when the export ends, also by an error; after a week without anybody, with the next
export beside it.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from digseg_engine.bundle import sha256
from digseg_engine.console import note
from digseg_engine.crash_points import reached
from digseg_engine.errors import OutputError
from digseg_engine.files import FORGOTTEN, flush, write_json
from digseg_engine.locks import alone

FORMAT, SUFFIX, WRITER = "digseg.export-stage/1", ".tmp-export", "writer"
SPARE = 2  # times the bytes of a stage that must be free to keep it
LARGEST = 64 << 20  # bytes of the facts of a stage


@dataclass(frozen=True)
class Stage:
    """A finished stage. facts: plain JSON. parts: files by name, whose hashes are right."""

    facts: dict[str, Any]
    parts: dict[str, Path] = field(default_factory=dict)

    def read(self, part: str) -> bytes:
        """The bytes of a part."""
        return self.parts[part].read_bytes()

    def place(self, folder: Path) -> None:
        """Put the parts into a folder under their names."""
        for name, path in self.parts.items():
            shutil.copyfile(path, folder / name)


class Stages:
    """The finished stages of one export. folder None: nothing is found and nothing kept."""

    def __init__(self, folder: Path | None = None, key: str = "") -> None:
        self._folder, self._key = folder, key
        if folder is not None:
            with suppress(OSError):
                self._forget_others(folder)

    @property
    def names(self) -> list[str]:
        """Of the finished ones."""
        return [] if self._folder is None else sorted(path.stem for path in self._folder.glob("*.json"))

    def find(self, name: str) -> Stage | None:
        """A stage that was finished and is whole, else None."""
        if self._folder is None or (body := _body(self._folder / f"{name}.json", self._key)) is None:
            return None
        parts = {part: self._folder / f"{name}.{part}" for part in body["parts"]}
        try:
            if all(sha256(parts[part]) == digest for part, digest in body["parts"].items()):
                return Stage(body["facts"], parts)
        except OSError:
            pass
        return None

    def keep(
        self, name: str, facts: dict[str, Any], bodies: Mapping[str, bytes] | None = None,
        files: Mapping[str, Path] | None = None,
    ) -> None:  # fmt: skip
        """Keep a stage: parts of `bodies`, and of `files` as they are. One that cannot be kept is done again."""
        if self._folder is None:
            return
        bodies, files = bodies or {}, files or {}
        parts = {part: self._folder / f"{name}.{part}" for part in (*bodies, *files)}
        try:
            self.forget(name)
            size = sum(map(len, bodies.values())) + sum(path.stat().st_size for path in files.values())
            if shutil.disk_usage(self._folder).free < size * SPARE:
                return  # the bundle may need the room
            for part, path in parts.items():
                path.write_bytes(bodies[part]) if part in bodies else shutil.copyfile(files[part], path)
                flush(path)
                reached("part of a stage written")
            listed = {part: sha256(path) for part, path in parts.items()}
            write_json(
                self._folder / f"{name}.json", {"format": FORMAT, "key": self._key, "facts": facts, "parts": listed}
            )
        except (OSError, OutputError):  # a full disk, which the bundle will meet, and tell
            with suppress(OSError):
                for path in parts.values():
                    path.unlink(missing_ok=True)

    def forget(self, name: str) -> None:
        """Remove a stage that is needed no more, or kept anew."""
        stage = self.find(name)
        if self._folder is not None:
            (self._folder / f"{name}.json").unlink(missing_ok=True)
        for path in () if stage is None else stage.parts.values():
            path.unlink(missing_ok=True)

    def _forget_others(self, folder: Path) -> None:
        """Remove what is of another export, and what no stage lists."""
        wanted = {WRITER}
        for path in folder.glob("*.json"):
            if (body := _body(path, self._key)) is not None:
                wanted |= {path.name, *(f"{path.stem}.{part}" for part in body["parts"])}
        for path in folder.iterdir():
            if path.name not in wanted and not path.is_dir():
                path.unlink(missing_ok=True)


def _body(path: Path, key: str) -> dict[str, Any] | None:
    """What a stage's JSON says; None for one that is not ours or of another key."""
    try:
        with path.open("rb") as file:
            body: dict[str, Any] = json.loads(file.read(LARGEST))
        fits = body["format"] == FORMAT and body["key"] == key and isinstance(body["facts"], dict)
        names = list(body["parts"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    plain = all(isinstance(digest, str) and not {"/", "\\", "\0"} & {*part} for part, digest in names)
    return body if fits and plain else None


def room_of(target: Path) -> Path:
    """Where the stages of an export to `target` are kept."""
    target = target.resolve()
    return target.with_name(f".{target.name[:100]}{SUFFIX}")


@contextmanager
def one_export(target: Path, waits: Callable[[str], None]) -> Iterator[Callable[[str], Stages]]:
    """The only export into `target` on this machine for the block: another one is waited for, and told to `waits` in words.

    Yields what opens its stages by their key. They stay when the block is interrupted and go when it ends, by an error too.
    Where the room cannot be made, or is not this user's alone, nothing is kept and nobody waits.
    """
    room = room_of(target)
    with ExitStack() as stack:
        if not _entered(room, waits, stack):
            yield lambda key: Stages()
            return
        _forget_old(room)
        try:
            yield lambda key: Stages(room, key)
        except Exception:
            _remove(room)
            raise
        _remove(room)


def waits_for(target: Path, who: str) -> None:
    """Say whose export into the same folder this one waits for."""
    note("digseg-export", f"note: {who}, is writing {target}; waiting until it ends")


def _entered(room: Path, waits: Callable[[str], None], stack: ExitStack) -> bool:
    """Make the room and take its lock; False where it cannot be used."""
    while _mine(room):
        try:
            stack.enter_context(alone(room / WRITER, waits))
            return True
        except FileNotFoundError:  # the one that had it has removed it between two looks
            continue
        except OSError:
            return False
    return False


def _mine(room: Path, make: bool = True) -> bool:
    """Is there a room that nobody else can write to, made where it is missing?"""
    try:
        with suppress(FileExistsError):
            if make:
                room.parent.mkdir(parents=True, exist_ok=True)
                room.mkdir(mode=0o700)
        about = room.lstat()
    except OSError:
        return False
    owned = not hasattr(os, "geteuid") or (about.st_uid == os.geteuid() and not about.st_mode & 0o022)
    return stat.S_ISDIR(about.st_mode) and owned


def _remove(room: Path) -> None:
    """The files of a room, the lock last, and the room where it is empty then."""
    with suppress(OSError):
        for path in sorted(room.iterdir(), key=lambda path: path.name == WRITER):
            path.unlink()
        room.rmdir()


def _forget_old(room: Path) -> None:
    """Remove rooms beside this one that nobody has come back to for a week."""
    with suppress(OSError):
        for other in room.parent.glob(f".*{SUFFIX}"):
            if other == room or not _mine(other, make=False) or not (other / WRITER).is_file():
                continue
            newest = max(path.stat().st_mtime for path in other.iterdir())
            if time.time() - newest > FORGOTTEN:
                with suppress(_BusyError), alone(other / WRITER, _busy):
                    _remove(other)


class _BusyError(Exception):
    """Somebody has the lock."""


def _busy(who: str) -> None:
    raise _BusyError(who)
