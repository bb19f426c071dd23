"""How a checkpoint was made, kept beside its weights: settings, logs, curves, seconds, machine and versions."""

from __future__ import annotations

import csv
import json
import os
import platform
import shutil
from importlib.metadata import version
from pathlib import Path

from digseg_engine.runtime.machine import processor

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
    seconds = {}
    for stage in stages:
        for source, suffix in (("log.csv", "csv"), ("curve.png", "png")):
            shutil.copyfile(run / stage / source, folder / f"{stage}.{suffix}")
        with (run / stage / "log.csv").open() as file:
            seconds[stage] = float(list(csv.DictReader(file))[-1]["seconds"])
    made = {
        "seconds": {**seconds, "total": round(sum(seconds.values()), 1)},
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {"python": platform.python_version(), **{tool: version(tool) for tool in TOOLS}},
    }
    (folder / "made.json").write_text(json.dumps(made, indent=2) + "\n")
    return folder
