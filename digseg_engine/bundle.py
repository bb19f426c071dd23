"""Bundles on disk: written all or nothing, read only when complete and unchanged. Format `digseg.bundle/1`.

`manifest.json` is written last and names every other file with its size and SHA-256. Files are plain files: links are
refused, because a linked file can change behind its hash.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from digseg_engine.contract import BUNDLE_FORMAT, CONTRACT_VERSION
from digseg_engine.errors import BundleError, UsageError

MANIFEST = "manifest.json"
CHUNK = 1 << 20
HOW_TO_EXPORT = "export it again with `digseg-export`"


@dataclass(frozen=True)
class Bundle:
    """A verified bundle: every file listed in the manifest is present and has its hash."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def digest(self) -> str:
        """One hash over all files, for cache keys."""
        files = self.manifest["files"]
        return hashlib.sha256("".join(f"{n}:{files[n]['sha256']}" for n in sorted(files)).encode()).hexdigest()

    def file(self, name: str) -> Path:
        """Path of a listed file. Raises BundleError for a name the manifest does not list."""
        if name not in self.manifest["files"]:
            raise BundleError(f"{self.folder} lists no file {name}; {HOW_TO_EXPORT}")
        return self.folder / name


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def open_bundle(folder: Path | str) -> Bundle:
    """Read and check a bundle. Raises BundleError naming the first thing that is wrong."""
    folder = Path(folder)
    if not folder.is_dir():
        raise BundleError(f"bundle {folder} not found; expected a directory written by `digseg-export`")
    manifest = read_manifest(folder)
    for name, entry in manifest["files"].items():
        _check_file(folder, name, entry)
    return Bundle(folder, manifest)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, with its format and contract version checked; files are not looked at."""
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(f"{folder} is not a complete bundle: {MANIFEST} is missing; {HOW_TO_EXPORT}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found, contract = manifest["format"], manifest["contract"]["version"]
        files = manifest["files"]
        if not isinstance(files, dict):
            raise TypeError("files is not an object")
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise BundleError(f"{path} cannot be read: {error!r}; {HOW_TO_EXPORT}") from error
    if found != BUNDLE_FORMAT:
        raise BundleError(f"{folder} has format {found!r}, this release reads {BUNDLE_FORMAT!r}; "
                          "use the release that wrote it, or export it again")  # fmt: skip
    if contract != CONTRACT_VERSION:
        raise BundleError(
            f"{folder} has contract version {contract}, this release reads {CONTRACT_VERSION}; {HOW_TO_EXPORT}"
        )
    result: dict[str, Any] = manifest
    return result


def _check_file(folder: Path, name: str, entry: Any) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) or not isinstance(entry, dict):
        raise BundleError(
            f"{folder}/{MANIFEST} lists the file name {name!r}; expected plain names only; {HOW_TO_EXPORT}"
        )
    path = folder / name
    if path.is_symlink() or not path.is_file():
        raise BundleError(f"{path} is missing or a link; expected a plain file; copy the whole bundle again")
    size, wanted = path.stat().st_size, entry.get("size")
    if size != wanted:
        raise BundleError(f"{path} is damaged: {wanted} bytes expected, got {size}; copy or export the bundle again")
    found = sha256(path)
    if found != entry.get("sha256"):
        raise BundleError(f"{path} is damaged: SHA-256 {str(entry.get('sha256'))[:12]}... expected, got {found[:12]}...; "
                          "copy or export the bundle again")  # fmt: skip


@contextmanager
def writing(target: Path, last: str = MANIFEST) -> Iterator[Path]:
    """A temporary sibling to fill with files; on success it is committed as `target`, on error it disappears.

    The caller writes `last` (a bundle: the manifest, with `finish`) as the last file. An older folder with that file at
    `target` is replaced; anything else there is refused with UsageError before work begins.
    """
    check_target(target, last)
    room = target.with_name(f"{target.name}.tmp-{uuid.uuid4().hex[:8]}")
    try:
        room.mkdir(parents=True)
    except OSError as error:
        raise UsageError(f"cannot write to {target.parent}: {error.strerror}; choose another output with -o") from error
    try:
        yield room
        _commit(room, target, last)
    finally:
        shutil.rmtree(room, ignore_errors=True)


def check_target(target: Path, last: str = MANIFEST) -> None:
    """Raises UsageError when `target` holds something that is not a bundle, or its parent cannot be written."""
    if target.exists() and not ((target / last).is_file() or (target.is_dir() and not any(target.iterdir()))):
        raise UsageError(
            f"{target} exists and is not a bundle; expected a new path or an older bundle; choose another with -o"
        )
    parent = target.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UsageError(f"{parent} is not a writable directory; choose another output with -o")


def finish(room: Path, manifest: dict[str, Any]) -> None:
    """Add sizes and hashes of all files to the manifest and write it; every file is flushed to disk first."""
    files = sorted(path for path in room.iterdir() if path.name != MANIFEST)
    for path in files:
        _flush(path)
    listed = {path.name: {"size": path.stat().st_size, "sha256": sha256(path)} for path in files}
    body = json.dumps({**manifest, "files": listed}, indent=2, sort_keys=True) + "\n"
    (room / MANIFEST).write_text(body, encoding="utf-8")
    _flush(room / MANIFEST)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _commit(room: Path, target: Path, last: str) -> None:
    if not (room / last).is_file():
        raise BundleError(f"{target} was not finished: no {last} was written; this is a programming error")
    old = target.with_name(f"{target.name}.tmp-old-{uuid.uuid4().hex[:8]}")
    if target.exists():
        target.rename(old)
    room.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    if os.name == "posix":
        handle = os.open(target.absolute().parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
