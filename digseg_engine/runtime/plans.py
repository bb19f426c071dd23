"""Plans built ahead of time: a folder of their own, format `digseg.plans/1`, which may travel between machines.

`manifest.json` names the bundle (by its hash), the library and its version, the compute capabilities, the shape profile,
and every plan with size and SHA-256; it is written last. A plan is executable code, so such a folder is opened only when
its user names it, never from inside a bundle, and the bytes that are run are the very ones whose hash was checked.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from digseg_engine import folders
from digseg_engine.bundle import LARGEST_MANIFEST, MANIFEST, Bundle
from digseg_engine.contract import GraphSpec
from digseg_engine.errors import BackendError
from digseg_engine.runtime.cuda_driver import Device

FORMAT = "digseg.plans/1"
FAMILY = "digseg.plans/"  # every version of the format begins with it
HOW_TO_BUILD = "build them with `digseg-export --bundle BUNDLE --format tensorrt-rtx`"


def plan_name(spec: GraphSpec) -> str:
    """File name of a graph's plan."""
    return spec.file.replace(".onnx", ".plan")


def _foreign(folder: Path) -> str:
    """What in a folder is not of our plans ("" when nothing is)."""
    try:
        body = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        listed = set(body["files"]) if str(body["format"]).startswith(FAMILY) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        listed = None
    if listed is None:
        return f"its {MANIFEST} is missing or not ours"
    extra = folders.others(folder, {MANIFEST, *listed})
    return f"it also holds {extra[0]!r}" if extra else ""


MARK = folders.Mark("a folder of plans", MANIFEST, _foreign)


@dataclass(frozen=True)
class Plans:
    """A folder of plans whose manifest fits the bundle and the library at hand."""

    folder: Path
    manifest: dict[str, Any]

    def path(self, spec: GraphSpec) -> Path:
        """Where a graph's plan lies."""
        return self.folder / plan_name(spec)

    def sha256(self, spec: GraphSpec) -> str:
        """The hash of a graph's plan as the manifest has it."""
        return str(self.manifest["files"][plan_name(spec)]["sha256"])

    def read(self, spec: GraphSpec) -> bytes:
        """The bytes of a plan, read once, whose size and hash are the manifest's. Raises BackendError otherwise."""
        path = self.path(spec)
        try:
            with path.open("rb") as file:
                plan = file.read(os.fstat(file.fileno()).st_size)
        except OSError as error:
            raise BackendError(
                f"{path} cannot be read: {error.strerror or error}; copy the whole folder again"
            ) from error
        found = hashlib.sha256(plan).hexdigest()
        if found != self.sha256(spec):
            raise BackendError(f"{path} is damaged: SHA-256 {self.sha256(spec)[:12]}... expected, got {found[:12]}...; copy "
                               f"the whole folder again, or {HOW_TO_BUILD}")  # fmt: skip
        return plan

    def check_gpu(self, device: Device) -> None:
        """Raises BackendError for a GPU that the plans do not name."""
        if int(device.compute_capability.replace(".", "")) not in self.manifest["targets"]:
            named = ", ".join(map(str, self.manifest["targets"]))
            raise BackendError(f"the plans in {self.folder} are for compute capability {named}, and {device.name} has "
                               f"{device.compute_capability}; {HOW_TO_BUILD} --compute-capability NUMBER")  # fmt: skip


def open_plans(folder: Path, bundle: Bundle, library: str, version: str) -> Plans:
    """A folder of plans for a bundle, to be run by a library of this version: releases read only their own plans.

    Raises BackendError naming the first thing that does not fit.
    """
    path = folder / MANIFEST
    try:
        if path.stat().st_size > LARGEST_MANIFEST:
            raise ValueError(f"it is larger than {LARGEST_MANIFEST >> 20} MiB")
        body = json.loads(path.read_text(encoding="utf-8"))
        form, made_of = str(body["format"]), str(body["bundle"])
        made_by, release = str(body["library"]["name"]), str(body["library"]["version"])
        if not all(type(target) is int for target in body["targets"]):
            raise ValueError("targets are no whole numbers")
        hashes = [body["files"][plan_name(spec)]["sha256"] for spec in bundle.graphs.values()]
        if not all(isinstance(text, str) for text in hashes):
            raise ValueError("a hash is no text")
    except OSError as error:
        raise BackendError(
            f"{path} cannot be read: {error.strerror or error}; expected a folder of plans; {HOW_TO_BUILD}"
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BackendError(
            f"{path} is none of a folder of plans: {type(error).__name__}: {error}; {HOW_TO_BUILD}"
        ) from error
    same_release = release.split(".")[:3] == version.split(".")[:3]
    alone = f"{version} is here, and a release reads its own plans alone"
    for fits, words in (
        (form == FORMAT, f"have format {form!r:.60}, this release reads {FORMAT!r}"),
        (made_of == bundle.digest, f"were built of another bundle than {bundle.folder}"),
        (made_by == library, f"are for {made_by!r:.60}, not for {library}"),
        (same_release, f"were built by {library} {release:.60}; {alone}"),
    ):
        if not fits:
            raise BackendError(f"the plans in {folder} {words}; {HOW_TO_BUILD}")
    return Plans(folder, body)
