"""Where a stage's figures go beside its own files: TensorBoard and Weights & Biases, through accelerate's trackers.

The trackers are used directly, not through `Accelerator.log`: its end closes the process group, and a run has more stages.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker
from PIL import Image

from digseg_engine.errors import UsageError
from digseg_engine.extras import install_line
from digseg_engine.files import write_text

PROJECT = "digseg"  # of Weights & Biases, unless WANDB_PROJECT names another
RUN_ID = "wandb-run.txt"  # beside the log: what a resumed run goes on with
MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}  # setting of a stage -> what it imports


def check_trackers(settings: Mapping[str, Any]) -> None:
    """Raises UsageError naming the package that a tracker in `settings` needs and that is not installed."""
    for name in (name for name in MODULES if settings.get(name)):
        try:
            import_module(MODULES[name])
        except ImportError as error:
            raise UsageError(f"--{name} needs the package {name}, which is not installed; run: {install_line(name)}, or leave "
                             "the option out") from error  # fmt: skip


def open_trackers(config: Any, folder: Path, start: int) -> list[GeneralTracker]:
    """The trackers that a stage's settings ask for, begun; `start` steps lie behind it.

    Raises UsageError for a missing package, or a tracker that cannot begin (Weights & Biases without a login).
    """
    settings = asdict(config)
    check_trackers(settings)
    trackers: list[GeneralTracker] = []
    if settings["tensorboard"]:
        trackers.append(TensorBoardTracker("tensorboard", str(folder), purge_step=start + 1))
    if settings["wandb"]:
        trackers.append(_wandb(settings, folder))
    for tracker in trackers:
        try:
            tracker.start()
        except Exception as error:
            said = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
            login = "log in with `wandb login`, set WANDB_MODE=offline, or " if tracker.name == "wandb" else ""
            raise UsageError(f"--{tracker.name} cannot begin: {said}; {login}leave the option out") from error
    return trackers


def _wandb(settings: dict[str, Any], folder: Path) -> GeneralTracker:
    """One run per stage, grouped by the training run; a resumed stage goes on with the same one."""
    stored = folder / RUN_ID
    if not stored.is_file():
        write_text(stored, uuid.uuid4().hex[:12] + "\n")
    place = folder.resolve()
    return WandBTracker(
        os.environ.get("WANDB_PROJECT", PROJECT), dir=str(place), id=stored.read_text().strip(), resume="allow",
        name=f"{place.parent.name}/{place.name}", group=place.parent.name, config=settings,
    )  # fmt: skip


def log_picture(trackers: Sequence[GeneralTracker], name: str, picture: Image.Image, step: int) -> None:
    """A picture for every tracker that takes some."""
    pixels = np.asarray(picture.convert("RGB"))[None]
    for tracker in trackers:
        if hasattr(tracker, "log_images"):
            more = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({name: pixels}, step=step, **more)
