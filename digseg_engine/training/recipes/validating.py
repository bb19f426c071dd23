"""What the stages that segment are validated on: held-out pictures of every folder, scenes that are neither training's nor the
tests'."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from accelerate import PartialState
from torch import nn

from digseg_engine.console import note
from digseg_engine.data.batch import Batches
from digseg_engine.data.batches import FolderOptions, folder_batches
from digseg_engine.data.datasets import dataset_splits
from digseg_engine.data.shares import Data, parse_shares, scored_shares, short_names
from digseg_engine.errors import UsageError
from digseg_engine.evaluation.predictors import Predict, reference_predictor, student_predictor
from digseg_engine.evaluation.protocols import (
    VALIDATION_SEED,
    LabelledPictures,
    Samples,
    TestScenes,
    held_out_split,
)
from digseg_engine.model.pretrained import Checkpoint
from digseg_engine.training.loop import Loss, StageConfig
from digseg_engine.training.objectives.learner import student_of
from digseg_engine.training.run import in_every_stage
from digseg_engine.training.validation import Validator
from digseg_engine.worlds.scenes import is_scenes
from digseg_engine.worlds.sources import parse_domains

Config = TypeVar("Config")


def validated_where_held_out(config: Config, data: Data) -> Config:
    """The settings of a run whose recipe asks for validation: without it, unless all data are folders with a validation
    split that is not trained on."""
    folder = getattr(config, "folder", FolderOptions())
    fit = all(not is_scenes(share.data) and _has_validation_split(share.data, folder) for share in parse_shares(data))
    return config if fit else in_every_stage(config, validate_every=0)


def _has_validation_split(place: Path | str, folder: FolderOptions) -> bool:
    names = [name for name in dataset_splits(place, folder.layout) if name.lower().startswith("val")]
    return bool(names) and folder.split != "all" and folder.split not in names


def scored_split(place: Path | str, folder: FolderOptions) -> tuple[str, bool]:
    """The split of a folder that a run is scored on, and whether the run also trains on it."""
    split = held_out_split(place, folder.layout)
    return split, folder.split in (split, "all") or len(dataset_splits(place, folder.layout)) == 1


def student_validator(
    checkpoint: Checkpoint, data: Data, config: Any, stage: StageConfig, loss: Callable[[Batches], Loss] | None = None
) -> Validator | None:
    """How the student's stage is validated, None where it is not; loss: the stage's, of given batches."""

    def predictor(module: nn.Module) -> Predict:
        trained = copy.copy(checkpoint)
        trained.student = student_of(module)  # type: ignore[assignment]
        return student_predictor(trained, _size(checkpoint, config), readout=False)  # which is trained after it

    return _validator(checkpoint, data, config, stage, predictor, loss)


def reference_validator(
    checkpoint: Checkpoint, data: Data, config: Any, stage: StageConfig, steps: int = 1,
    loss: Callable[[Batches], Loss] | None = None,
) -> Validator | None:  # fmt: skip
    """How a stage of the reference is validated, asked in `steps` steps."""

    def predictor(module: nn.Module) -> Predict:
        trained = copy.copy(checkpoint)
        trained.reference = module  # type: ignore[assignment]
        return reference_predictor(trained, steps, _size(checkpoint, config))

    return _validator(checkpoint, data, config, stage, predictor, loss)


def _size(checkpoint: Checkpoint, config: Any) -> int:
    return config.size or checkpoint.config.image_size


def _validator(
    checkpoint: Checkpoint, data: Data, config: Any, stage: StageConfig, predictor: Callable[[Any], Predict],
    loss: Callable[[Batches], Loss] | None,
) -> Validator | None:  # fmt: skip
    if stage.validate_every < 0 or stage.validate_pictures < 1 or stage.early_stop < 0:
        raise UsageError("validate_every and early_stop must be 0 or more and validate_pictures 1 or more, got "
                         f"{stage.validate_every}, {stage.early_stop} and {stage.validate_pictures}")  # fmt: skip
    if not stage.validate_every:
        return None
    size, sets, losses = _size(checkpoint, config), list[Samples](), list[Loss]()
    shares = scored_shares(data)
    for share, name in zip(shares, short_names(shares)):
        place = share.data
        if is_scenes(share.data):
            sets += _scene_sets(share.data, stage.validate_pictures, size, config.seed)
            continue
        split, trained = scored_split(place, config.folder)
        samples = LabelledPictures(place, stage.validate_pictures, config.folder.layout, split, config.seed)
        samples.name = f"{name} {split}"
        sets.append(samples)
        if trained and PartialState().is_main_process:
            note("digseg", f"note: {place} has no held-out split: the run is validated on pictures that it trains on, and its "
                           "best weights are those that know them by heart")  # fmt: skip
        if loss is not None and not trained:
            options = FolderOptions(config.folder.layout, split, workers=0)
            losses.append(loss(folder_batches(checkpoint.vae, share.data, size, config.seed, options, Path())))
    return Validator(sets, predictor, losses, max(1, stage.validate_pictures // stage.batch))


def _scene_sets(data: str, count: int, size: int, seed: int) -> list[Samples]:
    """Scenes painted as training's are: whoever chose weights by the tests' pairs would have seen them."""
    first = VALIDATION_SEED + int(np.random.default_rng(seed).integers(1_000_000))
    return [TestScenes(domain, count, size, first=first, split="train") for domain in parse_domains(data)]
