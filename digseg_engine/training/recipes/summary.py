"""What a run says of itself: its stages before the first step, and how good the student was before and is after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from digseg_engine.console import Pace
from digseg_engine.data.batches import FolderOptions
from digseg_engine.data.shares import Data, scored_shares, short_names
from digseg_engine.evaluation.predictors import student_predictor
from digseg_engine.evaluation.protocols import LabelledPictures, Samples, open_samples
from digseg_engine.evaluation.score import evaluate
from digseg_engine.model.devices import device_of
from digseg_engine.model.pretrained import Checkpoint
from digseg_engine.training.recipe_files import STORED, RecipeSettings
from digseg_engine.training.recipes.validating import scored_split
from digseg_engine.training.run import Plain, stages_of
from digseg_engine.words import counted
from digseg_engine.worlds.scenes import is_scenes

PICTURES = 20  # scored before and after, of each test set
VALIDATED = ("one_step", "few_step", "student")  # the stages that end with something that segments


def print_schedule(out: Path, config: RecipeSettings, checkpoint: Checkpoint, size: int) -> None:
    """Device, weights, for every stage what it will do, and the other values of the run that matter."""
    if not PartialState().is_main_process:
        return
    device = device_of(checkpoint.student)
    threads = torch.get_num_threads()
    cpu = f"{threads} thread{'s' if threads > 1 else ''} of the CPU"
    where = cpu if device.type == "cpu" else torch.cuda.get_device_name()
    parts: dict[str, torch.nn.Module] = {
        "student": checkpoint.student,
        "autoencoder": checkpoint.vae,
        "text": checkpoint.text_encoder,
        "denoiser": checkpoint.student.unet,
        "backbone": checkpoint.student,
        **({"presence": checkpoint.student.read_presence} if checkpoint.student.config.presence_width else {}),
    }
    recipe = f", recipe {config.recipe}" if config.recipe else ""
    print(f"training into {out} on {where}, pictures of {size} px{recipe}")
    for name, stage in stages_of(config).items():
        watched = name in VALIDATED and stage.validate_every
        count = sum(p.numel() for p in parts.get(name, checkpoint.reference).parameters()) / 1e6
        adapters = f", adapters of rank {stage.lora}" if stage.lora else ""
        pictures = stage.batch * stage.accumulate
        validated = f", validated every {stage.validate_every}" if watched else ""
        print(f"  {name}: {stage.steps} steps of {pictures} pictures, {count:.1f} million weights{adapters}, "
              f"{stage.optimizer} at {stage.learning_rate:g} after {counted(stage.warmup, 'step')} of warm-up, "
              f"average {stage.ema:g}, precision {stage.precision}{validated}")  # fmt: skip
    values = " ".join(f"{name}={value}" for name, value in telling_values(config).items())
    print(f"  {values}; every value: {out / STORED}", flush=True)


def telling_values(config: RecipeSettings) -> dict[str, Any]:
    """Values of a run beside its stages: all plain ones, and of the folder's those that are not neutral."""
    plain = {name: value for name, value in vars(config).items() if isinstance(value, Plain) and name != "recipe"}
    neutral, folder = FolderOptions(), getattr(config, "folder", FolderOptions())
    changed = {f"folder.{name}": value for name, value in vars(folder).items() if value != getattr(neutral, name)}
    return {**plain, **changed}


@dataclass(frozen=True)
class Score:
    """Mean IoU of the student on some pictures, and on those of every test set."""

    pictures: str
    miou: float
    sets: Mapping[str, float]


def student_score(checkpoint: Checkpoint, data: Data, config: Any) -> Score | None:
    """The student on held-out pictures (of a folder without any: on the first ones it trains on, which is said).

    None in all processes but the first."""
    if not PartialState().is_main_process:
        return None
    size = checkpoint.config.image_size
    shares = scored_shares(data)
    chosen = [scored_sets(share.data, size, config.folder, name) for share, name in zip(shares, short_names(shares))]
    predict = student_predictor(checkpoint)
    pace = Pace("scoring the student on pictures", sum(len(samples) for sets, _ in chosen for samples in sets))
    values = {each.name: evaluate(predict, each, pace).together.miou() for sets, _ in chosen for each in sets}
    said = [f"{sum(len(samples) for samples in sets)} {kind}" for sets, kind in chosen]
    return Score(" and ".join(said), sum(values.values()) / len(values), values)


def scored_sets(
    data: str, size: int, folder: FolderOptions, name: str, count: int = PICTURES
) -> tuple[list[Samples], str]:  # fmt: skip
    """Test sets of one part of the data with at most so many pictures each, and what their pictures are; name: what a folder
    is called among them."""
    if is_scenes(data):
        return open_samples(data, count, size), "test scenes"
    split, alone = scored_split(data, folder)
    kind = "of the training pictures (there is no val or test split)" if alone else f"pictures of the {split} split"
    samples = LabelledPictures(data, count, folder.layout, split)
    samples.name = f"{name} {split}"
    return [samples], kind


def print_score(before: Score | None, after: Score | None) -> None:
    """One line: mean IoU before and after."""
    if after is not None:
        began = "" if before is None else f"{before.miou:.3f} before, "
        print(f"student, mean IoU on {after.pictures}: {began}{after.miou:.3f} after training")
        for name, reached in after.sets.items() if len(after.sets) > 1 else ():
            began = "" if before is None else f"{before.sets[name]:.3f} before, "
            print(f"  {name}: {began}{reached:.3f} after")
