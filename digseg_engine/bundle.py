"""Bundles on disk: written all or nothing, read only when complete and unchanged. Format `digseg.bundle/2`.

`manifest.json` is written last and names every other file with its size and SHA-256. What is read is what was hashed, so
files may be links (a hub's cache, a Kubernetes volume, a Nix store): the hash of their targets protects them.
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from digseg_engine import folders
from digseg_engine.contract import BUNDLE_FORMAT, CONTRACT_VERSION, PRESENCE, GraphSpec, graphs_of
from digseg_engine.errors import BundleError
from digseg_engine.files import write_json
from digseg_engine.named import meant_instead
from digseg_engine.vocabulary import Vocabulary, vocabulary_of

MANIFEST = "manifest.json"
LARGEST_MANIFEST = 16 << 20  # bytes
CHUNK = 1 << 20
HOW_TO_EXPORT = "export it again with `digseg-export`"
FAMILY = "digseg.bundle/"  # every version of the format begins with it
ONE_PIECE = f"{FAMILY}1"  # two graphs: text, and picture with prompts
PLANS = (".plan", ".engine", ".trt")  # executable code: never part of a bundle, whoever wrote its hash
ENGINES = "engines"  # where releases up to 0.1 kept TensorRT plans


@dataclass(frozen=True)
class Bundle:
    """A verified bundle: every file listed in the manifest is present and has its hash."""

    folder: Path
    manifest: dict[str, Any]

    def __repr__(self) -> str:
        return f"Bundle({str(self.folder)!r}, {len(self.manifest['files'])} files, sha256 {self.digest[:16]})"

    @property
    def digest(self) -> str:
        """One hash over all files, for cache keys."""
        files = self.manifest["files"]
        return hashlib.sha256("".join(f"{n}:{files[n]['sha256']}" for n in sorted(files)).encode()).hexdigest()

    @property
    def graphs(self) -> dict[str, GraphSpec]:
        """Its graphs by name, in the order they are asked; presence is one of them where the model of an open bundle has the
        readout."""
        if self.vocabulary is not None:
            return graphs_of(self.manifest.get("presence") is not None, self.vocabulary.folding)
        return graphs_of(PRESENCE.file in self.manifest["files"])

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """The names of a folded bundle; None for an open one, which takes any prompt."""
        return vocabulary_of(self.manifest, self.folder / MANIFEST)

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
    try:
        folders.recover(folder)
        if not folder.is_dir():
            raise BundleError(f"bundle {folder} not found; expected a directory written by `digseg-export`")
        manifest = read_manifest(folder)
        for name, entry in manifest["files"].items():
            _check_file(folder, name, entry)
        _check_others(folder, manifest["files"])
    except OSError as error:
        raise BundleError(f"{error.filename or folder} cannot be read: {error.strerror or error}; make it readable, or copy "
                          "the whole bundle again") from error  # fmt: skip
    return Bundle(folder, manifest)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, with format, contract version and everything that readers rely on checked; files are not looked at.

    Raises BundleError.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(
            f"{folder} is not a complete bundle: {MANIFEST} is missing; {HOW_TO_EXPORT}{meant_instead(folder)}"
        )
    manifest = _parse(path)
    found = manifest.get("format")
    if found == ONE_PIECE:
        raise BundleError(f"{folder} has format {found!r}, whose pictures cannot be encoded apart from prompts; this release "
                          f"reads {BUNDLE_FORMAT!r}; make it from its checkpoint: {_export_again(manifest)}")  # fmt: skip
    if found != BUNDLE_FORMAT:
        raise BundleError(f"{path} has format {found!r:.60}, this release reads {BUNDLE_FORMAT!r}; "
                          "use the release that wrote it, or export it again")  # fmt: skip
    for key, fits, wanted in NEEDED:
        if not fits(value := _look_up(manifest, key)):
            raise BundleError(f"{path}: {key} is {value!r:.60}; expected {wanted}; {HOW_TO_EXPORT}")
    vocabulary_of(manifest, path)
    contract = manifest["contract"]["version"]
    if contract != CONTRACT_VERSION:
        raise BundleError(
            f"{path} has contract version {contract}, this release reads {CONTRACT_VERSION}; {HOW_TO_EXPORT}"
        )
    return manifest


def _export_again(manifest: dict[str, Any]) -> str:
    """The command that makes a bundle like this one."""
    precision = _look_up(manifest, "precision.name")
    wanted = f" --precision {precision}" if re.fullmatch(r"[a-z0-9]{1,8}", str(precision)) else ""
    return f"digseg-export CHECKPOINT{wanted}"


def _parse(path: Path) -> dict[str, Any]:
    """The JSON object of a file: no key twice, no NaN, no depth that Python cannot follow."""
    try:
        if path.stat().st_size > LARGEST_MANIFEST:
            raise ValueError(f"it is larger than {LARGEST_MANIFEST >> 20} MiB")
        manifest = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once, parse_constant=_refuse)
        if not isinstance(manifest, dict):
            raise ValueError("it is no JSON object")
    except (ValueError, OSError, RecursionError) as error:
        why = "too many brackets within each other" if isinstance(error, RecursionError) else f"{error}"
        raise BundleError(f"{path} cannot be read: {why}; {HOW_TO_EXPORT}") from error
    return manifest


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r:.60} stands there twice")
    return found


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _look_up(manifest: Any, key: str) -> Any:
    """The value at `a.b.c`, None where a part is missing."""
    for part in key.split("."):
        manifest = manifest.get(part) if isinstance(manifest, dict) else None
    return manifest


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value <= 1 << 20


def _is_limit(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < float("inf")


def _is_presence(value: Any) -> bool:
    """Nothing, or a threshold that is a logit or null."""
    if not isinstance(value, dict):
        return value is None
    limit = value.get("threshold")
    return limit is None or (type(limit) in (int, float) and abs(limit) < float("inf"))


def _is_span(value: Any) -> bool:
    """A range {min, opt, max} of one axis."""
    ends: list[Any] = [value.get(end) for end in ("min", "opt", "max")] if isinstance(value, dict) else [None]
    return all(map(_is_count, ends)) and ends == sorted(ends)


def _are_shapes(value: Any) -> bool:
    spans = [value.get(axis) for axis in "BKLHW"] if isinstance(value, dict) else [None]
    return all(span == "dynamic" for span in spans) or all(map(_is_span, spans))


NEEDED = (  # what readers take from a manifest without asking again
    ("contract.version", lambda v: type(v) is int, "a whole number"),
    ("files", lambda v: isinstance(v, dict), "an object"),
    ("model.image_size", _is_count, "a number of pixels"),
    ("model.stride", _is_count, "a number of pixels"),
    ("precision.name", lambda v: isinstance(v, str), "a text"),
    ("presence", _is_presence, "nothing, or a threshold that is a number or null"),
    ("shapes", _are_shapes, '"dynamic" or min <= opt <= max for each of B, K, L, H, W'),
    ("verification.limits.relative", _is_limit, "a number"),
    ("verification.limits.iou", _is_limit, "a number"),
)


def _check_file(folder: Path, name: str, entry: Any) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) or not isinstance(entry, dict):
        raise BundleError(
            f"{folder}/{MANIFEST} lists the file name {name!r:.60}; expected plain names only; {HOW_TO_EXPORT}"
        )
    if name.endswith(PLANS):
        raise BundleError(f"{folder}/{MANIFEST} lists {name!r:.60}; a plan is code for one machine and never part of a bundle; "
                          f"{HOW_TO_EXPORT}")  # fmt: skip
    path = folder / name
    if not path.is_file():
        raise BundleError(f"{path} is missing; expected a file; copy the whole bundle again")
    size, wanted = path.stat().st_size, entry.get("size")
    if size != wanted:
        raise BundleError(
            f"{path} is damaged: {wanted!r:.30} bytes expected, got {size}; copy or export the bundle again"
        )
    found = sha256(path)
    if found != entry.get("sha256"):
        raise BundleError(f"{path} is damaged: SHA-256 {str(entry.get('sha256'))[:12]}... expected, got {found[:12]}...; "
                          "copy or export the bundle again")  # fmt: skip


def _check_others(folder: Path, listed: dict[str, Any]) -> None:
    """Raises BundleError for what the manifest does not list. Hidden names are left alone: hub clients, file managers and
    Kubernetes put theirs into every folder, and no reader opens one."""
    if extra := [name for name in folders.others(folder, {MANIFEST, *listed}) if not name.startswith(".")]:
        raise BundleError(f"{folder} holds {extra[0]!r:.60}, which its manifest does not list; a bundle holds what was "
                          "hashed and nothing else; move it away")  # fmt: skip


def _foreign(folder: Path) -> str:
    """What in a folder is not a bundle's ("" when nothing is): the mark by which an older bundle may be replaced."""
    if not (folder / MANIFEST).is_file():
        return f"it has no {MANIFEST}"
    try:
        manifest = _parse(folder / MANIFEST)
    except BundleError:
        return f"its {MANIFEST} is not ours"
    files = manifest.get("files")
    if not str(manifest.get("format")).startswith(FAMILY) or not isinstance(files, dict):
        return f"its {MANIFEST} is not ours"
    extra = folders.others(folder, {MANIFEST, ENGINES, *files})
    return f"it also holds {extra[0]!r}" if extra else ""


MARK = folders.Mark("a bundle", MANIFEST, _foreign)


def writing(target: Path) -> AbstractContextManager[Path]:
    """A room to fill with a bundle's files, `finish` last; see `folders.writing`."""
    return folders.writing(target, MARK)


def check_target(target: Path) -> bool:
    """Is there an older bundle that will be replaced? Raises UsageError where none can be written."""
    return folders.check_target(target, MARK)


def finish(folder: Path, manifest: dict[str, Any]) -> None:
    """Add sizes and hashes of all files to the manifest and write it."""
    paths = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    listed = {path.name: {"size": path.stat().st_size, "sha256": sha256(path)} for path in paths}
    write_json(folder / MANIFEST, {**manifest, "files": listed}, sort_keys=True)
