"""Which bundle is meant: the one that is used when none is named, and the shipped one by its name. Torch-free."""

from __future__ import annotations

import os
from pathlib import Path

ASSETS = Path(__file__).resolve().parent / "assets"
SHIPPED_BUNDLE = ASSETS / "digseg-tiny-fp16"
SHIPPED_CHECKPOINT = ASSETS / "digseg-tiny"
DEFAULT_BUNDLE = "digseg-tiny-fp16"  # what `digseg-export` writes for the bundled checkpoint, in the current folder


def default_bundle() -> tuple[Path, str]:
    """The bundle to use when none is named, and why: $DIGSEG_BUNDLE, ./digseg-tiny-fp16, or the one that is shipped."""
    if named := os.environ.get("DIGSEG_BUNDLE"):
        return Path(named), "named by $DIGSEG_BUNDLE"
    if (Path(DEFAULT_BUNDLE) / "manifest.json").is_file() or not SHIPPED_BUNDLE.is_dir():
        return Path(DEFAULT_BUNDLE), "found in the current folder"
    return SHIPPED_BUNDLE, "shipped with digseg-engine; name another with --bundle"


def find_model(model: Path | str | None) -> Path:
    """The folder of a bundle or checkpoint as a caller names it. None is `default_bundle`; the names of the shipped bundle and
    checkpoint mean those where no folder of that name is."""
    if model is None:
        return default_bundle()[0]
    shipped = {DEFAULT_BUNDLE: SHIPPED_BUNDLE, SHIPPED_CHECKPOINT.name: SHIPPED_CHECKPOINT}.get(str(model))
    return shipped if shipped is not None and shipped.is_dir() and not Path(model).exists() else Path(model)


def meant_instead(folder: Path) -> str:
    """ "; did you mean FOLDER/checkpoint?" for the folder of a training run, else nothing."""
    inside = folder / "checkpoint"
    return f"; did you mean {inside}?" if (inside / "digseg.json").is_file() else ""
