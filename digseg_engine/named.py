"""Which bundle is meant: the one that is used when none is named, the shipped one by its name, and one on a hub. Torch-free."""

from __future__ import annotations

import os
from pathlib import Path

from digseg_engine.folders import recover
from digseg_engine.hub.ids import hub_id

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


def find_model(model: Path | str | None, on_hub: bool = True) -> Path:
    """The folder of a bundle or checkpoint as a caller names it. None is `default_bundle`; the names of the shipped bundle and
    checkpoint mean those where no folder of that name is; `owner/name` or `owner/name@revision` that is no path here is brought
    from a hub, which is asked for bundles alone (on_hub=False: of a checkpoint). Asked once by each caller: a branch may be
    another commit the next time.

    Raises BundleError, MissingPackageError and OutputError for what a hub does not have or what cannot be kept.
    """
    model = default_bundle()[0] if model is None else Path(model)
    recover(model)
    try:
        if model.exists():
            return model
    except (OSError, ValueError):
        return model  # a name too long, a zero byte, a folder that may not be looked into: its reader says so
    shipped = {DEFAULT_BUNDLE: SHIPPED_BUNDLE, SHIPPED_CHECKPOINT.name: SHIPPED_CHECKPOINT}.get(str(model))
    if shipped is not None and shipped.is_dir():
        return shipped
    if on_hub and (wanted := hub_id(model)) is not None:
        from digseg_engine.hub.download import bring

        return bring(wanted)
    return model


def brought(model: Path | str | None) -> Path | None:
    """The same, and where it is a hub's the folder it was brought to, so that it is asked for once; None stays None, as long as
    $DIGSEG_BUNDLE names nothing of a hub's. Raises what `find_model` raises."""
    named = default_bundle()[0] if model is None else Path(model)
    found = find_model(named) if hub_id(named) is not None else named
    return found if model is not None or found != named else None
