"""A bundle of a hub, brought into this user's cache once: plain files, whole and right, or not there.

`$DIGSEG_CACHE` (or the platform's cache folder) / hub / SERVER / OWNER / NAME / COMMIT / NAME is the bundle, which any reader
opens as it does every other. Beside the commits `revisions.json` says which one a branch or tag was when the hub was last asked:
what is used when it cannot be asked. Only files that the manifest lists are fetched, each by its plain name, and none is kept
under that name before it has its size and SHA-256; the signature comes along. One process fetches a commit, others wait for it;
where it was killed the next one goes on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from digseg_engine import cache
from digseg_engine.bundle import (
    LARGEST_MANIFEST,
    LARGEST_SIGNATURE,
    MANIFEST,
    SIGNATURE,
    check_entry,
    read_manifest,
    sha256,
)
from digseg_engine.errors import BundleError, MissingPackageError, OutputError
from digseg_engine.files import flush, write_json
from digseg_engine.folders import settle, turn
from digseg_engine.hub.client import Revision, TooLongError, UnreachableError, fetch, is_offline, look_up, server
from digseg_engine.hub.ids import COMMIT, HubId
from digseg_engine.words import counted

REVISIONS = "revisions.json"
_log = logging.getLogger("digseg_engine")


def bring(repo: HubId) -> Path:
    """The folder of a hub's bundle, fetched if it is not here yet.

    Raises BundleError for what is not there, not a bundle, or not what its manifest says; MissingPackageError without the extra
    `[hub]`; OutputError where nothing can be kept.
    """
    home = _home(repo)
    if COMMIT.fullmatch(repo.revision) and (folder := _kept(home, repo, repo.revision)) is not None:
        return folder  # a commit never changes: nobody is asked
    if is_offline():
        return _as_before(home, repo, "$HF_HUB_OFFLINE is set")
    try:
        found = look_up(repo)
    except UnreachableError as error:
        return _as_before(home, repo, "the hub cannot be asked", error)
    except MissingPackageError as error:
        return _as_before(home, repo, "the extra [hub] is not installed", error)
    folder = _kept(home, repo, found.commit) or _fetched(home, repo, found)
    _record(home, repo.revision, found.commit)
    _log.info("%s is commit %s", repo, found.commit)
    return folder


def _home(repo: HubId) -> Path:
    """Where the commits of a repository are kept, every level closed to others. Raises OutputError where there is no place."""
    base = cache.own_folder(create=True)
    if base is None:
        raise OutputError(f"there is no cache folder of this user's own to keep {repo} in ({cache.folder() or 'no home'}); let "
                          "$DIGSEG_CACHE name one that only you can write")  # fmt: skip
    at = base
    for part in ("hub", _place(server()), repo.owner, repo.name):
        at = at / part
        _make(at)
    return at


def _place(address: str | None) -> str:
    """A folder's name for a server: what one says of a repository is nothing that another one said."""
    if address is None:
        return "usual"
    words = re.sub(r"[^a-z0-9]+", "-", address.lower().rpartition("//")[2].rpartition("@")[2])
    return f"{words[:60]}-{hashlib.sha256(address.encode()).hexdigest()[:8]}"


def _make(folder: Path) -> None:
    """A folder of mode 0700, made or there. Raises OutputError."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made: {error.strerror or error}; let $DIGSEG_CACHE name a folder that you can "
                          "write") from error  # fmt: skip


def _kept(home: Path, repo: HubId, commit: str) -> Path | None:
    """The folder of a commit where all of it is here."""
    folder = home / commit / repo.name
    return folder if (folder / MANIFEST).is_file() else None


def _as_before(home: Path, repo: HubId, why: str, error: Exception | None = None) -> Path:
    """What a revision was when the hub was last asked. Raises `error`, or BundleError, where that is not known."""
    commit = _recorded(home).get(repo.revision, "")
    folder = _kept(home, repo, commit) if COMMIT.fullmatch(commit) else None
    if folder is None:
        raise error or BundleError(f"{repo} is no folder here and was never fetched, and {why}; fetch it once with a network, "
                                   "or give the path of a copy")  # fmt: skip
    _log.warning("%s: %s; using commit %s, as fetched before", repo, why, commit)
    return folder


def _recorded(home: Path) -> dict[str, str]:
    with suppress(OSError, ValueError, RecursionError):
        body = json.loads((home / REVISIONS).read_text(encoding="utf-8"))
        return {key: value for key, value in body.items() if isinstance(value, str)} if isinstance(body, dict) else {}
    return {}


def _record(home: Path, revision: str, commit: str) -> None:
    """A read-only cache is read from all the same."""
    if COMMIT.fullmatch(revision) or _recorded(home).get(revision) == commit:
        return
    with suppress(OutputError, OSError), turn(home):
        write_json(home / REVISIONS, {**_recorded(home), revision: commit}, sort_keys=True)


def _fetched(home: Path, repo: HubId, found: Revision) -> Path:
    """Every file of a commit, in its place when all are right."""
    if MANIFEST not in found.sizes:
        raise BundleError(f"{repo} holds no bundle: it has no {MANIFEST}; expected what `digseg push` or an upload of a bundle's "
                          "folder makes")  # fmt: skip
    folder, draft = home / found.commit / repo.name, home / f".{found.commit}"
    _make(home / found.commit)
    _make(draft)
    waiting = f"waiting for another process that is fetching {repo}"
    with turn(draft, lambda: _log.info("%s", waiting)):
        if (there := _kept(home, repo, found.commit)) is not None:
            with suppress(OSError):
                draft.rmdir()
            return there  # another process was quicker
        listed = _manifest(draft, repo, found)
        bytes_ = sum(int(entry["size"]) for entry in listed.values())
        _log.info(
            "fetching %s, commit %s: %s, %.1f MiB", repo, found.commit, counted(len(listed), "file"), bytes_ / 2**20
        )
        for name, entry in listed.items():
            _file(draft, repo, found.commit, name, int(entry["size"]), str(entry.get("sha256")))
        _put(draft, folder, {MANIFEST, SIGNATURE, *listed})
    return folder


def _manifest(draft: Path, repo: HubId, found: Revision) -> dict[str, Mapping[str, Any]]:
    """Fetch manifest and signature and look at all they say before anything large is asked for: the files that it lists."""
    for name, most in ((MANIFEST, LARGEST_MANIFEST), (SIGNATURE, LARGEST_SIGNATURE)):
        if (size := found.sizes.get(name)) is None:
            continue
        if not 0 < size <= most:
            raise BundleError(f"{repo}: {name} has {size} bytes, expected 1 to {most}; ask whoever made it")
        _file(draft, repo, found.commit, name, size, "")
    try:
        listed: dict[str, Mapping[str, Any]] = read_manifest(draft)["files"]
        for name, entry in listed.items():
            check_entry(draft, name, entry)
            size = entry.get("size")
            if type(size) is not int or found.sizes.get(name) != size:
                raise BundleError(f"{repo} is not whole: its manifest says that {name} has {size!r:.30} bytes, the hub has "
                                  f"{found.sizes.get(name, 'no such file')}; ask whoever made it to push it again")  # fmt: skip
    except BundleError as error:
        (draft / MANIFEST).unlink(missing_ok=True)
        raise BundleError(str(error).replace(str(draft), str(repo))) from error
    return listed


def _file(draft: Path, repo: HubId, commit: str, name: str, size: int, digest: str) -> None:
    """One file, in the draft under its name once it is right. digest "": of the manifest and the signature, which nothing lists.

    A part that was begun is gone on with, also where the connection broke after something came. Where the whole is wrong then, or
    the server sends all of it again, it is fetched anew, once: the part may have been wrong.
    """
    target, part, anew = draft / name, draft / f".{name}.part", False
    if _is(target, size, digest):
        return
    while True:
        begun = _bytes(part)
        if begun > size:
            part.unlink()
            begun = 0
        try:
            fetch(repo, commit, name, size, part)
        except UnreachableError:
            if _bytes(part) <= begun:
                raise
            continue
        except TooLongError:
            if anew or not begun:
                raise
        else:
            if _is(part, size, digest):
                part.replace(target)
                return
        part.unlink(missing_ok=True)
        if anew or not begun:
            raise BundleError(f"{repo}: {name} is not what its manifest says (SHA-256 {digest[:12]}... expected); it was not "
                              "kept; ask whoever made it to push it again")  # fmt: skip
        anew = True


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _is(path: Path, size: int, digest: str) -> bool:
    return path.is_file() and path.stat().st_size == size and (not digest or sha256(path) == digest)


def _put(draft: Path, folder: Path, names: set[str]) -> None:
    """Move a finished draft into place, without what it needs no more."""
    try:
        for path in draft.iterdir():
            if path.name not in names:
                path.unlink()
        settle(draft)
        shutil.rmtree(folder, ignore_errors=True)  # without a manifest it is nothing
        draft.rename(folder)
        if os.name == "posix":
            flush(folder.parent)
    except OSError as error:
        raise OutputError(
            f"cannot keep {folder}: {error.strerror or error}; let $DIGSEG_CACHE name another place"
        ) from error
