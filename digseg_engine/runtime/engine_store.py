"""TensorRT engines on disk: content key, sidecar JSON, and why a stored engine does not fit.

An engine is machine code for one GPU, one TensorRT and one graph. It lives in `engines/<key>/<graph>.plan` of this user's
cache (see `private_cache`), never in a bundle: the plan kept pure (any tool can read it), everything known about it in
`<graph>.json` beside it. It is executable, so the bytes that are deserialised are the very ones whose hash and key were
checked, and it is never downloaded.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from digseg_engine.bundle import Bundle
from digseg_engine.contract import GraphSpec
from digseg_engine.errors import BackendError
from digseg_engine.files import write_bytes, write_json
from digseg_engine.locks import alone
from digseg_engine.runtime.private_cache import private_folder, read_private

SIDECAR_FORMAT = "digseg.engine/1"
FOLDER = "engines"
LARGEST_SIDECAR, LARGEST_PLAN = 1 << 20, 16 << 30
_log = logging.getLogger("digseg_engine")
HOW_TO_BUILD = "build it on this machine with `python -m digseg_export.to_tensorrt BUNDLE`"


@dataclass(frozen=True)
class EngineKey:
    """Everything an engine depends on. `profile` is the shape profile as JSON text."""

    graph: str  # SHA-256 over graph and weights
    tensorrt: str
    cuda: str
    gpu: str
    compute_capability: str
    profile: str
    precision: str

    @property
    def digest(self) -> str:
        """Short content key: the folder name."""
        body = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(body.encode()).hexdigest()[:20]


def graph_hash(bundle: Bundle, spec: GraphSpec) -> str:
    """One hash over a graph file and its external weights, from the manifest's own hashes."""
    names = (spec.file, spec.file.replace(".onnx", ".data"))
    listed = [f"{n}:{bundle.manifest['files'][n]['sha256']}" for n in names if n in bundle.manifest["files"]]
    return hashlib.sha256("|".join(listed).encode()).hexdigest()


def engine_path(key: EngineKey, spec: GraphSpec, create: bool = False) -> Path:
    """Where the plan of this key belongs. Raises BackendError when that folder is not this user's alone."""
    return private_folder(FOLDER, key.digest, create=create) / spec.file.replace(".onnx", ".plan")


def store(spec: GraphSpec, plan: bytes | memoryview, key: EngineKey, facts: dict[str, Any]) -> Path:
    """Write a plan and then its sidecar, each whole or not at all. Returns the plan's path."""
    path = engine_path(key, spec, create=True)
    body = {"format": SIDECAR_FORMAT, "key": asdict(key), "sha256": hashlib.sha256(plan).hexdigest(),
            "size": memoryview(plan).nbytes, **facts}  # fmt: skip
    sidecar = path.with_suffix(".json")
    write_bytes(path, bytes(plan))
    write_json(sidecar, body, sort_keys=True)
    for written in (path, sidecar):  # whatever the umask says; the folder was closed to others before
        written.chmod(0o600)
    return path


@contextmanager
def building(key: EngineKey, spec: GraphSpec) -> Iterator[None]:
    """While one process builds the plan of a key, others that want it wait, and say for whom. Where there are no locks each
    builds, and the last one stays. Raises BackendError when the folder is not this user's alone."""
    path = engine_path(key, spec, create=True)
    with ExitStack() as stack:
        with suppress(OSError):
            stack.enter_context(alone(path.with_suffix(".building"), lambda who: _log.info(
                "%s, is building the engine of %s; waiting for it", who, spec.file)))  # fmt: skip
        yield


def load_plan(path: Path, key: EngineKey) -> bytes:
    """The bytes of a plan, read once, whose key and hash are right. Raises BackendError saying which is not."""
    try:
        body = _sidecar(path.with_suffix(".json"))
        if missed := differing(body["key"], asdict(key)):
            raise BackendError(f"{path} was built for something else ({'; '.join(missed)}); {HOW_TO_BUILD}")
        plan = read_private(path, LARGEST_PLAN)
    except FileNotFoundError as error:
        raise BackendError(f"no engine for this machine at {path}; {HOW_TO_BUILD}") from error
    if len(plan) != body["size"] or hashlib.sha256(plan).hexdigest() != body["sha256"]:
        raise BackendError(f"{path} is damaged: its SHA-256 is not the one in its JSON; {HOW_TO_BUILD}")
    return plan


def _sidecar(path: Path) -> dict[str, Any]:
    """The facts about a plan. Raises BackendError for anything but our own format, FileNotFoundError without it."""
    try:
        body = json.loads(read_private(path, LARGEST_SIDECAR))
        if body["format"] != SIDECAR_FORMAT:
            raise ValueError(f"format {body['format']!r}, expected {SIDECAR_FORMAT!r}")
        for name, kind in (("key", dict), ("sha256", str), ("size", int)):
            if not isinstance(body[name], kind):
                raise ValueError(f"{name} is {body[name]!r}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BackendError(f"{path} cannot be read: {type(error).__name__}: {error}; {HOW_TO_BUILD}") from error
    found: dict[str, Any] = body
    return found


def differing(stored: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """The fields of two keys that differ, in words."""
    names = sorted({*stored, *wanted})
    return [f"{name}: built for {stored.get(name)!r}, here {wanted.get(name)!r}"
            for name in names if stored.get(name) != wanted.get(name)]  # fmt: skip


def explain(spec: GraphSpec, key: EngineKey) -> list[str]:
    """One line for every stored engine of a graph: fits, or which fields of the key missed."""
    lines = []
    for path in sorted(private_folder(FOLDER, create=False).glob(f"*/{spec.file.replace('.onnx', '.json')}")):
        where = f"{path.parent.name}/{path.stem}"
        try:
            missed = differing(_sidecar(path)["key"], asdict(key))
        except (BackendError, OSError) as error:
            lines.append(f"{where}: {error}")
            continue
        lines.append(f"{where}: {'; '.join(missed) if missed else 'fits this machine'}")
    return lines or [f"no engine of {spec.file} is stored; {HOW_TO_BUILD}"]
