"""Plans built ahead of time: a folder of their own, format `digseg.plans/1`, which may travel between machines.

`manifest.json` names the bundle (by its hash), the library and its version, the compute capabilities, the shape profile,
and every plan with size and SHA-256; it is written last. A plan is executable code, so such a folder is opened only when
its user names it, never from inside a bundle, and the bytes that are run are the very ones whose hash was checked.
"""

from __future__ import annotations

import json
from pathlib import Path

from digseg_engine import folders
from digseg_engine.bundle import MANIFEST
from digseg_engine.contract import GraphSpec

FORMAT = "digseg.plans/1"
FAMILY = "digseg.plans/"  # every version of the format begins with it


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
