"""TensorRT engines on disk: content key, sidecar JSON, and why a stored engine does not fit.

An engine is machine code for one GPU, one TensorRT and one graph. It lives in `engines/<key>/<graph>.plan` of its bundle,
the plan kept pure (any tool can read it), everything known about it in `<graph>.json` beside it. It is executable, so
its hash and every field of its key are checked before it is deserialised, and it is never downloaded.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from digseg_engine.bundle import Bundle, sha256
from digseg_engine.contract import GraphSpec
from digseg_engine.errors import BackendError

SIDECAR_FORMAT = "digseg.engine/1"
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


def engine_path(bundle: Bundle, key: EngineKey, spec: GraphSpec) -> Path:
    """Where the plan of this key belongs."""
    return bundle.folder / "engines" / key.digest / spec.file.replace(".onnx", ".plan")


def store(path: Path, plan: bytes | memoryview, key: EngineKey, facts: dict[str, Any]) -> None:
    """Write a plan and then its sidecar, each by temporary file and rename, so that a reader never sees half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, plan)
    body = {"format": SIDECAR_FORMAT, "key": asdict(key), "sha256": sha256(path), "size": path.stat().st_size, **facts}
    _replace(path.with_suffix(".json"), (json.dumps(body, indent=2, sort_keys=True) + "\n").encode())


def _replace(path: Path, body: bytes | memoryview) -> None:
    partial = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_plan(path: Path, key: EngineKey) -> bytes:
    """The bytes of a plan whose key and hash are right. Raises BackendError saying which field or byte is not."""
    sidecar = path.with_suffix(".json")
    if path.is_symlink() or not path.is_file() or not sidecar.is_file():
        raise BackendError(f"no engine for this machine at {path}; {HOW_TO_BUILD}")
    body = _sidecar(sidecar)
    if missed := differing(body["key"], asdict(key)):
        raise BackendError(f"{path} was built for something else ({'; '.join(missed)}); {HOW_TO_BUILD}")
    if path.stat().st_size != body["size"] or sha256(path) != body["sha256"]:
        raise BackendError(f"{path} is damaged: its SHA-256 is not the one in {sidecar.name}; {HOW_TO_BUILD}")
    return path.read_bytes()


def _sidecar(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if body["format"] != SIDECAR_FORMAT or not isinstance(body["key"], dict) or "sha256" not in body:
            raise ValueError(f"format {body['format']!r}, expected {SIDECAR_FORMAT!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BackendError(f"{path} cannot be read: {error!r}; {HOW_TO_BUILD}") from error
    found: dict[str, Any] = body
    return found


def differing(stored: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """The fields of two keys that differ, in words."""
    names = sorted({*stored, *wanted})
    return [f"{name}: built for {stored.get(name)!r}, here {wanted.get(name)!r}"
            for name in names if stored.get(name) != wanted.get(name)]  # fmt: skip


def explain(bundle: Bundle, spec: GraphSpec, key: EngineKey) -> list[str]:
    """One line for every stored engine of a graph: fits, or which fields of the key missed."""
    lines = []
    for path in sorted((bundle.folder / "engines").glob(f"*/{spec.file.replace('.onnx', '.json')}")):
        where = f"{path.parent.name}/{path.stem}"
        try:
            missed = differing(_sidecar(path)["key"], asdict(key))
        except BackendError as error:
            lines.append(f"{where}: {error}")
            continue
        lines.append(f"{where}: {'; '.join(missed) if missed else 'fits this machine'}")
    return lines or [f"no engine of {spec.file} is stored; {HOW_TO_BUILD}"]
