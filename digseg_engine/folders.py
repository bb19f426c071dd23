"""A folder that a command makes (a bundle, a checkpoint): filled beside its place, checked, swapped in. All or nothing.

What is there already is replaced only when it carries our own mark and holds nothing but what we wrote; everything else
is refused before work begins and once more before the swap. Torch-free.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from digseg_engine.console import note
from digseg_engine.crash_points import reached
from digseg_engine.errors import BundleError, OutputError, UsageError
from digseg_engine.files import OWNED, abandoned, flush, flush_names, owned_name
from digseg_engine.locks import CAN_LOCK, lock

DRAFT = ".tmp-"  # in the name of a folder that is being filled
ASIDE = ".tmp-old-"  # in the name of a folder that makes way
SEALED = "manifest.json"  # in a folder that holds nothing but what is listed there, with its hash
TRIES = 50  # how often a writer without a lock makes way for another one


@dataclass(frozen=True)
class Mark:
    """How a kind of folder is known as ours.

    what: its name in messages, with its article. last: the file that is written last. foreign: says what in an existing
    folder is not ours ("" when all of it is).
    """

    what: str
    last: str
    foreign: Callable[[Path], str]


def listing(
    what: str, report: str, form: str, last: str | None = None, ignored: Callable[[str], bool] = lambda name: False
) -> Mark:  # fmt: skip
    """The mark of a folder whose JSON file `report`, of format `form`, lists the paths of all others under `files`, but for the
    one that is written last (None: the report itself). ignored: names that others leave behind."""

    def foreign(folder: Path) -> str:
        try:
            body = json.loads((folder / report).read_text(encoding="utf-8"))
            listed = set(body["files"]) if body["format"] == form else set()
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            listed = set()
        if not listed:
            return f"its {report} is missing or not ours"
        found = (name for name in files_of(folder) if not ignored(name))
        extra = sorted(set(found) - {*listed, report, last})
        return f"it also holds {extra[0]!r}" if extra else ""

    return Mark(what, last or report, foreign)


def files_of(folder: Path) -> Iterator[str]:
    """The paths of all files and links in a folder, with slashes."""
    return (p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir() or p.is_symlink())


@contextmanager
def writing(target: Path, mark: Mark) -> Iterator[Path]:
    """A temporary sibling to fill with files; on success it is put at `target`, on error it disappears.

    The caller writes `mark.last` as the last file. Files get the mode that the user's umask gives. Of two writers of one
    folder, the one that ends last stays. Raises UsageError for a place that cannot be used, before work begins, and
    OutputError when the swap fails; the older folder is back in its place then.
    """
    recover(target)
    check_target(target, mark)
    target = target.resolve()  # behind a link the folder itself is replaced, the link stays
    draft = target.with_name(f".{target.name[:100]}{DRAFT}{owned_name()}")
    _forget_drafts(target)
    try:
        draft.mkdir(parents=True)
    except OSError as error:
        raise UsageError(f"cannot write to {target.parent}: {error.strerror}; choose another output with -o") from error
    try:
        reached("folder created")
        yield draft
        if not (draft / mark.last).is_file():
            raise BundleError(f"{target} was not finished: no {mark.last} was written; this is a programming error")
        reached("folder filled")
        settle(draft)
        reached("folder flushed")
        _put(draft, target, mark)
        reached("folder put")
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def check_target(target: Path, mark: Mark) -> bool:
    """Is there an older folder of ours that will be replaced?

    Raises UsageError when `target` holds anything else, is the working directory or around it, or cannot be written.
    """
    try:
        place = target.resolve()
        around = Path.cwd().is_relative_to(place)
        check_outside(place.parent)
        parent = next((folder for folder in place.parents if folder.exists()), place)
        writable = parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)
        foreign = _foreign(place, mark)
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, a loop of links, a zero byte, no permission
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"{target} cannot be written: {why}; choose another output with -o") from error
    if around:
        raise UsageError(f"{target} is the working directory or a folder around it; expected a folder of its own; choose "
                         "another with -o")  # fmt: skip
    if not writable:
        raise UsageError(f"{parent} is not a writable directory; choose another output with -o")
    if foreign:
        raise UsageError(f"{target} exists and is not {mark.what} ({foreign}); expected a new path or {mark.what} of an "
                         "earlier run; choose another with -o")  # fmt: skip
    return foreign is not None


def _foreign(place: Path, mark: Mark) -> str | None:
    """What at `place` is not ours: None when nothing is there, "" when all of it is ours."""
    try:
        place.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not place.is_dir():
        return "it is not a folder"
    return mark.foreign(place) if any(place.iterdir()) else None


def check_output(folder: Path) -> None:
    """Raises UsageError, before any work is done, when files cannot be written into `folder`, or it cannot be made."""
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            folder.lstat()  # raises for a name that is too long, or a loop of links
        check_outside(folder)
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"output {folder} is a file; expected a folder; choose another with -o")
        parent = folder.absolute()
        while not parent.exists() and parent != parent.parent:
            parent = parent.parent
        if not parent.is_dir():
            raise UsageError(f"cannot write to {parent}, which is a file; choose another output with -o")
        os.rmdir(tempfile.mkdtemp(prefix=".digseg-", dir=parent))  # permissions alone do not tell, of root least of all
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot write to {folder}: {why}; choose another output with -o") from error


def check_outside(folder: Path) -> None:
    """Raises UsageError for a folder that is a bundle or a folder of plans, or lies inside one: with a file that its manifest
    does not list it would be refused from then on."""
    for place in (folder.resolve(), *folder.resolve().parents):
        if _is_sealed(place):
            raise UsageError(f"output {folder} is inside {place}, which holds what its manifest lists and nothing else; choose "
                             "another output with -o")  # fmt: skip


def _is_sealed(folder: Path) -> bool:
    try:
        body = json.loads((folder / SEALED).read_text(encoding="utf-8"))
        return isinstance(body, dict) and str(body.get("format", "")).startswith("digseg.")
    except (OSError, ValueError, RecursionError):
        return False


def check_output_file(path: Path) -> None:
    """Raises UsageError, before any work is done, when a file cannot be written at `path`."""
    check_output(path.parent)
    try:
        with suppress(FileNotFoundError):
            path.lstat()
        taken = path.is_dir()
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}; choose another name") from error
    if taken:
        raise UsageError(f"{path} is a folder; expected the name of a file")


def meant_instead(folder: Path) -> str:
    """ "; did you mean FOLDER/checkpoint?" for the folder of a training run, else nothing."""
    inside = folder / "checkpoint"
    return f"; did you mean {inside}?" if (inside / "digseg.json").is_file() else ""


def others(folder: Path, listed: Iterable[str]) -> list[str]:
    """The names in a folder that are not `listed`, sorted."""
    return sorted({path.name for path in folder.iterdir()} - set(listed))


def settle(draft: Path) -> None:
    """Give every file the umask's mode (libraries make some of them 0600) and wait until all of them are on the disk."""
    mode = draft.stat().st_mode & 0o666
    for path in draft.rglob("*"):
        if path.is_file():
            path.chmod(mode)
            flush(path)
    flush_names(draft)


def _put(draft: Path, target: Path, mark: Mark) -> None:
    """Swap `draft` into place. Others may write the same target now: they wait, or make way and try again."""
    with turn(target.parent):
        for leftover in _set_aside(target) if target.exists() else []:
            shutil.rmtree(leftover, ignore_errors=True)
        for left in reversed(range(TRIES)):
            check_target(target, mark)
            try:
                return _swap(draft, target)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and left:
                    continue  # another writer came in between
                raise OutputError(f"cannot put the new folder at {target}: {error.strerror or error}; what was there is as "
                                  "before; choose another output with -o") from error  # fmt: skip


def recover(target: Path | str) -> None:
    """Put back the older folder that a writer had moved aside when it was killed before its new one was in place.

    Called before every reading and writing; does nothing where `target` is there, or where nothing can be moved."""
    target = Path(target)
    if os.path.lexists(target):
        return
    with suppress(OSError, ValueError, RuntimeError):  # a loop of links is told by whoever opens it
        target = target.resolve()
        if not _set_aside(target):
            return
        with turn(target.parent):  # a writer between its two moves ends first
            aside = _set_aside(target)
            if aside and not os.path.lexists(target):
                max(aside, key=lambda path: path.stat().st_ctime_ns).rename(target)


def _forget_drafts(target: Path) -> None:
    """Remove the half-filled folders of `target` whose writers were killed; say which of them live."""
    start = f".{target.name[:100]}{DRAFT}"
    with suppress(OSError):
        for path in target.parent.iterdir():
            owner = OWNED.fullmatch(path.name[len(start) :]) if path.name.startswith(start) else None
            if owner is None or int(owner[2]) == os.getpid():
                continue
            if abandoned(path):
                shutil.rmtree(path, ignore_errors=True)
            else:
                note("digseg", f"note: process {owner[2]} is writing {target} too; whichever ends last stays")


def _set_aside(target: Path) -> list[Path]:
    """Older folders of `target` that were moved aside and never removed."""
    start = f".{target.name}{ASIDE}"
    if len(target.name) > 100 or not target.parent.is_dir():
        return []
    return [path for path in target.parent.iterdir() if path.name.startswith(start) and path.is_dir()]


def _swap(draft: Path, target: Path) -> None:
    """Move the older folder aside and the new one in; whatever ends this, one of them is at `target`."""
    old = target.with_name(f".{target.name[:100]}{ASIDE}{uuid.uuid4().hex[:8]}")
    try:
        with suppress(FileNotFoundError):
            target.rename(old)
            reached("older folder aside")
        draft.rename(target)
        reached("folder renamed")
    finally:
        if old.exists() and not target.exists():
            with suppress(OSError):
                old.rename(target)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
    flush_names(target.parent)


@contextmanager
def turn(parent: Path, waits: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Writers into one folder take turns where the system can lock a folder; the lock leaves no file and dies with us. `waits`
    is called when another one has it."""
    if not CAN_LOCK:
        yield
        return
    handle = os.open(parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # a network file system without locks
            lock(handle, waits)
        yield
    finally:
        os.close(handle)
