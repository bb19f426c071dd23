"""Which bundle is meant: the one that is used when none is named, and the shipped one by its name. Torch-free."""

from __future__ import annotations

import os
from pathlib import Path

ASSETS = Path(__file__).resolve().parent / "assets"
SHIPPED_BUNDLE = ASSETS / "digseg-tiny-fp16"
DEFAULT_BUNDLE = "digseg-tiny-fp16"  # what `digseg-export` writes for the bundled checkpoint, in the current folder


def default_bundle() -> tuple[Path, str]:
    """The bundle to use when none is named, and why: $DIGSEG_BUNDLE, ./digseg-tiny-fp16, or the one that is shipped."""
    if named := os.environ.get("DIGSEG_BUNDLE"):
        return Path(named), "named by $DIGSEG_BUNDLE"
    if (Path(DEFAULT_BUNDLE) / "manifest.json").is_file() or not SHIPPED_BUNDLE.is_dir():
        return Path(DEFAULT_BUNDLE), "found in the current folder"
    return SHIPPED_BUNDLE, "shipped with digseg-engine; name another with --bundle"


def find_model(model: Path | str | None) -> Path:
    """The folder of a bundle or checkpoint as a caller names it. None is `default_bundle`; the shipped bundle's name means the
    shipped one where no folder of that name is."""
    if model is None:
        return default_bundle()[0]
    named = str(model) == DEFAULT_BUNDLE and not Path(model).exists() and SHIPPED_BUNDLE.is_dir()
    return SHIPPED_BUNDLE if named else Path(model)
