"""`sbom.cdx.json`: what a bundle was made from, as a CycloneDX 1.6 bill of materials for machine-learning models.

Base weights, data with licences, training settings, figures and tools, as far as the checkpoint's own record names them; what it
does not name is said to be unknown and never guessed. Two equal exports give the same bytes: there is no clock in it, and its
serial number is made from its contents. Folders of whoever trained it are given by their last part alone.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from digseg_engine.bundle import sha256
from digseg_engine.data.shares import parse_shares
from digseg_engine.errors import UsageError
from digseg_engine.worlds.scenes import is_scenes

SBOM = "sbom.cdx.json"
SCHEMA = "http://cyclonedx.org/schema/bom-1.6.schema.json"
SNAPSHOT = re.compile(r"models--(?P<owner>[^/]+)--(?P<name>[^/]+)/snapshots/(?P<revision>[0-9a-f]{40})")
STARTS = ("init", "source", "autoencoder")  # settings of a record that name weights
SCENES = "scenes"  # drawn by this project: no files, its own licence
UNKNOWN = "not recorded"
Body = dict[str, Any]


def sbom_of(folder: Path, manifest: Body, record: Path | None) -> Body:
    """The bill of the files in `folder`. manifest: what its manifest will say; record: the checkpoint, None without one."""
    trained, quality = _json(record, "training/train.json"), _json(record, "quality.json")
    starts, data = list(_starts(record)), list(_data(record))
    model = {
        "type": "machine-learning-model", "bom-ref": "model", "name": manifest["model"]["name"],
        "licenses": [{"license": {"name": manifest["licence"]["weights"]}}],
        "modelCard": {
            "modelParameters": {
                "approach": {"type": "supervised"}, "task": "text-prompted image segmentation",
                "architectureFamily": "latent diffusion", "modelArchitecture": "DiGSeg, one-step student",
                "datasets": [{"ref": part["bom-ref"]} for part in data],
                "inputs": [{"format": "RGB picture"}, {"format": "text prompts"}], "outputs": [{"format": "one mask per prompt"}],
            },
            "quantitativeAnalysis": {"performanceMetrics": [*_reached(quality), *_verified(manifest)]},
            "considerations": {"technicalLimitations": [_limits(manifest)]},
        },
        "properties": [*_settings(trained), _property("precision", manifest["precision"]["name"]),
                       _property("image_size", manifest["model"]["image_size"])],
    }  # fmt: skip
    if not data:
        del model["modelCard"]["modelParameters"]["datasets"]
    body = {
        "$schema": SCHEMA, "bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1,
        "metadata": {"tools": {"components": _tools(manifest["tools"])}, "component": model},
        "components": [*starts, *data, *_files(folder)],
        "dependencies": [{"ref": "model", "dependsOn": [part["bom-ref"] for part in (*starts, *data)]}],
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return {**body, "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'sha256:{digest}')}"}


def _json(record: Path | None, name: str) -> Any:
    """A file of the checkpoint; {} where it is not there or none of ours."""
    try:
        body = json.loads((record / name).read_text(encoding="utf-8")) if record is not None else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _runs(record: Path | None) -> Iterator[Body]:
    """The settings of the runs that made a checkpoint: the last one, what it began with, and so on."""
    at = "training"
    while record is not None and (body := _json(record, f"{at}/train.json")):
        yield body
        at += "/start"


def _starts(record: Path | None) -> Iterator[Body]:
    """Weights that a run began with."""
    named = dict.fromkeys(str(run[key]) for run in _runs(record) for key in STARTS if run.get(key))
    for number, text in enumerate(named):
        found = SNAPSHOT.search(text)
        part: Body = {"type": "machine-learning-model", "bom-ref": f"weights-{number}", "name": _public(text)}
        if found:
            part |= {"name": f"{found['owner']}/{found['name']}", "version": found["revision"],
                     "purl": f"pkg:huggingface/{found['owner']}/{found['name']}@{found['revision']}"}  # fmt: skip
        yield part if found else {**part, "properties": [_property("revision", UNKNOWN)]}


def _data(record: Path | None) -> Iterator[Body]:
    """What was trained on, each with its licence where that is known."""
    named: dict[str, None] = {}
    for run in _runs(record):
        try:
            named |= dict.fromkeys(share.data for share in parse_shares(run.get("data") or []))
        except (UsageError, TypeError, AttributeError, OSError, ValueError):
            continue
    for number, text in enumerate(named):
        drawn = is_scenes(text)
        about = {"type": "dataset", "name": "generated scenes" if drawn else _public(text)}
        part: Body = {
            "type": "data",
            "bom-ref": f"data-{number}",
            "name": text if drawn else _public(text),
            "data": [about],
        }
        if drawn:
            part["licenses"] = [{"license": {"id": "Apache-2.0"}}]
        else:
            part["properties"] = [_property("licence", UNKNOWN)]
        yield part


def _public(text: str) -> str:
    """How a folder or address is called outside: its last part; of an address no account, password or signature."""
    if "://" in text:
        parts = urlsplit(text)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    return Path(text).name or text


def _settings(trained: Body) -> list[Body]:
    """The settings of the last run under dotted names, those that name places apart."""
    return [
        _property(f"training.{name}", value) for name, value in sorted(_flat(trained)) if name not in (*STARTS, "data")
    ]


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif name and not (isinstance(value, str) and "/" in value):
        yield name, value


def _property(name: str, value: Any) -> Body:
    return {"name": f"digseg:{name}", "value": value if isinstance(value, str) else json.dumps(value)}


def _reached(quality: Body) -> Iterator[Body]:
    """The figures of `quality.json`: mean IoU of the student and of what it was made from."""
    where = str((quality.get("measured") or {}).get("on", "")) if isinstance(quality.get("measured"), dict) else ""
    for name, value in sorted(_flat({key: quality[key] for key in quality if key not in ("format", "measured")})):
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield {"type": f"mean IoU, {name}", "value": f"{value:g}", **({"slice": where} if where else {})}


def _verified(manifest: Body) -> Iterator[Body]:
    """What the export was held to."""
    limits = manifest["verification"]["limits"]
    yield {"type": "largest relative error against PyTorch allowed", "value": f"{limits['relative']:g}"}
    yield {"type": "smallest mean mask IoU with PyTorch allowed", "value": f"{limits['iou']:g}"}


def _limits(manifest: Body) -> str:
    size = manifest["model"]["image_size"]
    return f"trained for pictures of {size} pixels; things much smaller than a pixel at that size are not seen"


def _tools(tools: Body) -> list[Body]:
    return [{"type": "application", "name": name, "version": version,
             **({} if name == "python" else {"purl": f"pkg:pypi/{name}@{quote(version, safe='')}"})}
            for name, version in sorted(tools.items())]  # fmt: skip


def _files(folder: Path) -> list[Body]:
    return [{"type": "file", "name": path.name, "hashes": [{"alg": "SHA-256", "content": sha256(path)}]}
            for path in sorted(folder.iterdir()) if path.suffix in (".onnx", ".data")]  # fmt: skip
