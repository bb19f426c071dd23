"""How a checkpoint was made, kept beside its weights: settings, logs, curves, seconds, machine and versions.

`train.json` holds the settings a run began with, `recipe.toml` those of them that a recipe gives, to be used again;
`changes.json`, where a resumed run was told to go on with others, what changed and at which step of which stage.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from digseg_engine.errors import TrainingError
from digseg_engine.files import write_json
from digseg_engine.runtime.machine import processor
from digseg_engine.training.recipe_files import STORED
from digseg_engine.training.validation import PICTURE, TABLE, best_of

CHANGES = "changes.json"
PLACES = ("data", "init", "source", "autoencoder")  # settings that may be folders
TOOLS = ("torch", "diffusers", "transformers", "accelerate", "numpy")


def record_run(run: Path, stages: list[str], checkpoint: Path, start: Path | None = None) -> Path:
    """Copy settings, logs and curves of a finished run into `checkpoint/training` and write `made.json` there.

    start: the checkpoint that the run began with; its own record goes along as `training/start`.
    """
    folder = checkpoint / "training"
    folder.mkdir(parents=True, exist_ok=True)
    if start is not None and (start / "training").is_dir():
        shutil.copytree(start / "training", folder / "start", dirs_exist_ok=True)
    shutil.copyfile(run / "train.json", folder / "train.json")
    for name in (CHANGES, STORED):
        if (run / name).is_file():
            shutil.copyfile(run / name, folder / name)
    seconds, best = {}, {}
    for stage in stages:
        for source in (TABLE, PICTURE):
            if (run / stage / source).is_file():
                shutil.copyfile(run / stage / source, folder / f"{stage}-{source}")
        if chosen := best_of(run / stage):
            best[stage] = chosen
        for source, suffix in (("log.csv", "csv"), ("curve.png", "png")):
            shutil.copyfile(run / stage / source, folder / f"{stage}.{suffix}")
        with (run / stage / "log.csv").open() as file:
            seconds[stage] = float(list(csv.DictReader(file))[-1]["seconds"])
    record = {
        "seconds": {**seconds, "total": round(sum(seconds.values()), 1)},
        **({"best": best} if best else {}),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {"python": platform.python_version(), **{tool: version(tool) for tool in TOOLS}},
    }
    write_json(folder / "made.json", record)
    return folder


def read_settings(path: Path) -> dict[str, Any]:
    """Stored settings. Raises TrainingError when the file is damaged."""
    try:
        body: dict[str, Any] = json.loads(path.read_text())
        return body
    except (OSError, ValueError, RecursionError) as error:
        raise TrainingError(f"{path} cannot be read: {error}; restore it, or start a new folder") from error


def settings_in_force(run: Path) -> dict[str, Any]:
    """The flat settings ("student.steps" and so on) of the run in `run`, all changes applied; empty for a new run."""
    if not (run / "train.json").is_file():
        return {}
    settings = flat(read_settings(run / "train.json"))
    for change in _changes(run):
        settings.update({name: values["after"] for name, values in change["changed"].items()})
    return settings


def note_changes(run: Path, stage: str, step: int, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Add what differs to `changes.json`: from `step` of `stage` on, the settings are `after`."""
    changed = {name: {"before": before.get(name), "after": after.get(name)} for name in differences(before, after)}
    write_json(run / CHANGES, [*_changes(run), {"stage": stage, "step": step, "changed": changed}])


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Names whose values differ; a setting that a record lacks counts as None, and one folder is the same however its path
    is written."""
    return [name for name in sorted({*before, *after}) if not _same(name, before.get(name), after.get(name))]


def _same(name: str, mine: Any, theirs: Any) -> bool:
    if mine == theirs or name not in PLACES or not (isinstance(mine, str) and isinstance(theirs, str)):
        return bool(mine == theirs)
    return Path(mine).is_dir() and Path(mine).resolve() == Path(theirs).resolve()


def flat(settings: Any, path: str = "") -> dict[str, Any]:
    """Nested settings under dotted names; what is no mapping is a value, as JSON would give it back."""
    if not isinstance(settings, dict):
        return {path: list(settings) if isinstance(settings, tuple) else settings}
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found.update(flat(value, f"{path}.{name}" if path else str(name)))
    return found


def _changes(run: Path) -> list[dict[str, Any]]:
    if not (run / CHANGES).is_file():
        return []
    stored: Any = read_settings(run / CHANGES)
    return list(stored)
