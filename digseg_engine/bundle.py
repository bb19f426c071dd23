"""Bundles on disk: written all or nothing, read only when complete and unchanged. Format `digseg.bundle/2`.

`manifest.json` is written last and names every other file with its size and SHA-256. What is parsed is what was hashed: a
reader gets the very bytes (`Bundle.read`), and of a file too large to hold twice the word that nobody touched it between
(`Bundle.unchanged`). So files may be links (a hub's cache, a Kubernetes volume, a Nix store): the hash of their targets
protects them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from digseg_engine import folders
from digseg_engine.contract import BUNDLE_FORMAT, CONTRACT_VERSION, PRESENCE, GraphSpec, graphs_of
from digseg_engine.errors import BundleError
from digseg_engine.files import write_json
from digseg_engine.graph_files import check_weights
from digseg_engine.vocabulary import Vocabulary, vocabulary_of

MANIFEST = "manifest.json"
SIGNATURE = "model.sig"  # of the other files, the manifest's among them; see `signatures.py`
LARGEST_MANIFEST = 16 << 20  # bytes
LARGEST_SIGNATURE = 1 << 20
LARGEST_READ = 1 << 30  # bytes of a file that are held in memory; of larger weights the seal is looked at
CHUNK = 1 << 20
HOW_TO_EXPORT = "export it again with `digseg-export`"
FAMILY = "digseg.bundle/"  # every version of the format begins with it
ONE_PIECE = f"{FAMILY}1"  # two graphs: text, and picture with prompts
PLANS = (".plan", ".engine", ".trt")  # executable code: never part of a bundle, whoever wrote its hash
ENGINES = "engines"  # where releases up to 0.1 kept TensorRT plans


Seal = tuple[int, ...]  # what a file system says of a file that changes whenever its bytes may have


@dataclass(frozen=True)
class Bundle:
    """A verified bundle: every file listed in the manifest is present and has its hash.

    manifest_sha256: of the manifest's bytes as they were parsed. seals: of every listed file when it was hashed.
    """

    folder: Path
    manifest: dict[str, Any]
    manifest_sha256: str = ""
    seals: dict[str, Seal] = field(default_factory=dict, repr=False, compare=False)

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

    def read(self, name: str) -> bytes:
        """All bytes of a listed file, read once and hashed as they are given. Raises BundleError when they are others by now."""
        path, entry = self.file(name), self.manifest["files"][name]
        try:
            with open_plain(path) as file:
                body = file.read(entry["size"] + 1)
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error.strerror or error}; load the bundle again") from error
        if len(body) != entry["size"] or hashlib.sha256(body).hexdigest() != entry["sha256"]:
            raise BundleError(f"{path} has changed since the bundle was opened; load it again")
        return body

    def unchanged(self, name: str) -> None:
        """Raises BundleError when a listed file is another one than that which was hashed, or may have been written to
        since. Asked after a library has opened it by its path."""
        path = self.file(name)
        try:
            found = seal_of(os.stat(path))
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error.strerror or error}; load the bundle again") from error
        if found != self.seals.get(name, found):
            raise BundleError(f"{path} has changed since the bundle was opened; load it again")

    def graph(self, name: str) -> bytes:
        """The bytes of an ONNX graph that asks for nothing but its own listed weights. Raises BundleError otherwise."""
        body, data = self.read(name), weights_of(name)
        entry = self.manifest["files"].get(data)
        check_weights(body, str(self.folder / name), data, None if entry is None else int(entry["size"]))
        return body


def weights_of(graph: str) -> str:
    """The file that holds the weights of a graph and of the form of it that a CPU runs."""
    return f"{graph.removesuffix('.onnx').removesuffix('.fp32')}.data"


def open_plain(path: Path) -> BinaryIO:
    """A file opened for reading that is no device, pipe or folder, whatever stands at its name when it is opened. Raises
    OSError."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(0, "it is no plain file", str(path))
    return os.fdopen(handle, "rb")


def seal_of(about: os.stat_result) -> Seal:
    """Device, number, size and times of a file. The last of them cannot be set by whoever may write to the file."""
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns


def sha256(path: Path) -> str:
    return _hashed(path)[0]


def _hashed(path: Path) -> tuple[str, Seal]:
    """SHA-256 and seal of one open file. Raises OSError, also when it is written to meanwhile."""
    digest = hashlib.sha256()
    with open_plain(path) as file:
        before = seal_of(os.fstat(file.fileno()))
        while chunk := file.read(CHUNK):
            digest.update(chunk)
        if seal_of(os.fstat(file.fileno())) != before:
            raise OSError(0, "it is being written to", str(path))
    return digest.hexdigest(), before


def open_bundle(folder: Path | str) -> Bundle:
    """Read and check a bundle. Raises BundleError naming the first thing that is wrong."""
    folder = Path(folder)
    try:
        folders.recover(folder)
        if not folder.is_dir():
            raise BundleError(f"bundle {folder} not found; expected a directory written by `digseg-export`")
        manifest, digest = _read_manifest(folder)
        seals = {name: _check_file(folder, name, entry) for name, entry in manifest["files"].items()}
        _check_others(folder, manifest["files"])
    except OSError as error:
        raise BundleError(f"{error.filename or folder} cannot be read: {error.strerror or error}; make it readable, or copy "
                          "the whole bundle again") from error  # fmt: skip
    return Bundle(folder, manifest, digest, seals)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, with format, contract version and everything that readers rely on checked; files are not looked at.

    Raises BundleError.
    """
    return _read_manifest(folder)[0]


def _read_manifest(folder: Path) -> tuple[dict[str, Any], str]:
    """The manifest and the SHA-256 of its bytes."""
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(
            f"{folder} is not a complete bundle: {MANIFEST} is missing; {HOW_TO_EXPORT}{folders.meant_instead(folder)}"
        )
    manifest, digest = _parse(path)
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
    return manifest, digest


def _export_again(manifest: dict[str, Any]) -> str:
    """The command that makes a bundle like this one."""
    precision = _look_up(manifest, "precision.name")
    wanted = f" --precision {precision}" if re.fullmatch(r"[a-z0-9]{1,8}", str(precision)) else ""
    return f"digseg-export CHECKPOINT{wanted}"


def _parse(path: Path) -> tuple[dict[str, Any], str]:
    """The JSON object of a file and the SHA-256 of the bytes it was parsed from: no key twice, no NaN, no depth that Python
    cannot follow."""
    try:
        with open_plain(path) as file:
            body = file.read(LARGEST_MANIFEST + 1)
        if len(body) > LARGEST_MANIFEST:
            raise ValueError(f"it is larger than {LARGEST_MANIFEST >> 20} MiB")
        manifest = json.loads(body.decode("utf-8"), object_pairs_hook=_once, parse_constant=_refuse)
        if not isinstance(manifest, dict):
            raise ValueError("it is no JSON object")
    except (ValueError, OSError, RecursionError) as error:
        why = "too many brackets within each other" if isinstance(error, RecursionError) else f"{error}"
        raise BundleError(f"{path} cannot be read: {why}; {HOW_TO_EXPORT}") from error
    return manifest, hashlib.sha256(body).hexdigest()


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
    ("model.image_size_max", lambda v: v is None or _is_count(v), "nothing, or a number of pixels"),
    ("model.stride", _is_count, "a number of pixels"),
    ("precision.name", lambda v: isinstance(v, str), "a text"),
    ("presence", _is_presence, "nothing, or a threshold that is a number or null"),
    ("shapes", _are_shapes, '"dynamic" or min <= opt <= max for each of B, K, L, H, W'),
    ("verification.limits.relative", _is_limit, "a number"),
    ("verification.limits.iou", _is_limit, "a number"),
)


def check_entry(folder: Path, name: str, entry: Any) -> None:
    """Raises BundleError for the name of a file that no bundle may hold."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}", name) or not isinstance(entry, dict):
        raise BundleError(
            f"{folder}/{MANIFEST} lists the file name {name!r:.60}; expected plain names only; {HOW_TO_EXPORT}"
        )
    if name.endswith(PLANS):
        raise BundleError(f"{folder}/{MANIFEST} lists {name!r:.60}; a plan is code for one machine and never part of a bundle; "
                          f"{HOW_TO_EXPORT}")  # fmt: skip


def _check_file(folder: Path, name: str, entry: Any) -> Seal:
    check_entry(folder, name, entry)
    path = folder / name
    if not path.is_file():
        raise BundleError(f"{path} is missing; expected a file; copy the whole bundle again")
    size, wanted = path.stat().st_size, entry.get("size")
    if type(wanted) is not int or size != wanted:
        raise BundleError(
            f"{path} is damaged: {wanted!r:.30} bytes expected, got {size}; copy or export the bundle again"
        )
    found, seal = _hashed(path)
    if found != entry.get("sha256"):
        raise BundleError(f"{path} is damaged: SHA-256 {str(entry.get('sha256'))[:12]!a}... expected, got {found[:12]!a}...; "
                          "copy or export the bundle again")  # fmt: skip
    return seal


def _check_others(folder: Path, listed: dict[str, Any]) -> None:
    """Raises BundleError for what the manifest does not list. Hidden names are left alone: hub clients, file managers and
    Kubernetes put theirs into every folder, and no reader opens one."""
    if extra := [name for name in folders.others(folder, {MANIFEST, SIGNATURE, *listed}) if not name.startswith(".")]:
        raise BundleError(f"{folder} holds {extra[0]!r:.60}, which its manifest does not list; a bundle holds what was "
                          "hashed and nothing else; move it away")  # fmt: skip


def _foreign(folder: Path) -> str:
    """What in a folder is not a bundle's ("" when nothing is): the mark by which an older bundle may be replaced."""
    if not (folder / MANIFEST).is_file():
        return f"it has no {MANIFEST}"
    try:
        manifest, _ = _parse(folder / MANIFEST)
    except BundleError:
        return f"its {MANIFEST} is not ours"
    files = manifest.get("files")
    if not str(manifest.get("format")).startswith(FAMILY) or not isinstance(files, dict):
        return f"its {MANIFEST} is not ours"
    extra = folders.others(folder, {MANIFEST, SIGNATURE, ENGINES, *files})
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
    paths = sorted(path for path in folder.iterdir() if path.name not in (MANIFEST, SIGNATURE))
    listed = {path.name: {"size": path.stat().st_size, "sha256": sha256(path)} for path in paths}
    write_json(folder / MANIFEST, {**manifest, "files": listed}, sort_keys=True)
