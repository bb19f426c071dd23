"""What an export depends on, as one hash: stages kept under another one (`kept_stages.py`) are those of another export."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import digseg_engine
from digseg_engine.bundle import seal_of, sha256
from digseg_engine.runtime.machine import processor
from digseg_export.manifest import TOOLS

HERE, ENGINE = Path(__file__).resolve().parent, Path(digseg_engine.__file__).resolve().parent


def export_key(checkpoint: dict[str, Any], asked: dict[str, Any], data: list[Path]) -> str:
    """Of the checkpoint (`checkpoint_hashes`), what was asked of the export, and folders of pictures, whose files count by size,
    number and times. The exporter counts by its own source, libraries by their versions, the processor by its name."""
    about = {
        "checkpoint": checkpoint,
        "asked": asked,
        "data": [_seals(folder) for folder in data],
        "exporter": _sources(),
        "tools": {name: version(name) for name in TOOLS},
        "processor": [platform.machine(), processor()],
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=_plain).encode()).hexdigest()


def checkpoint_hashes(folder: Path) -> dict[str, Any]:
    """Path and SHA-256 of every file of a checkpoint. Raises OSError."""
    return {path.relative_to(folder).as_posix(): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def _seals(folder: Path) -> dict[str, Any]:
    return {
        path.relative_to(folder).as_posix(): seal_of(path.stat())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _sources() -> str:
    """One hash over the source of the exporter and of the models that it exports."""
    digest = hashlib.sha256(digseg_engine.__version__.encode())
    for base in (HERE, ENGINE):
        for path in sorted(base.rglob("*.py")):
            digest.update(path.relative_to(base).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return str(value)
