"""A loss that is not finite: the error names the stage, the step, the batch and the pictures that were in it."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from dataset_trees import own

from digseg_engine.data.batches import FolderOptions, folder_batches
from digseg_engine.data.mixtures import MixedBatches
from digseg_engine.errors import TrainingError
from digseg_engine.model.pretrained import load_checkpoint, save_checkpoint
from digseg_engine.training.loop import StageConfig, train_stage
from digseg_engine.training.objectives.one_step import OneStepLoss
from digseg_engine.training.objectives.pairs import PairSource
from digseg_engine.training.objectives.student import DistillationLoss
from digseg_engine.training.recipes.finetune import FinetuneConfig, finetune
from digseg_engine.worlds.pool import SceneBatches, build_pool
from digseg_engine.worlds.sources import cache_latents

SHORT = StageConfig(8, 2, 1e-4, prompts=3, warmup=1, optimizer="adamw", save_every=100)


def batches_of(nano, folder, tmp_path, **options):
    return folder_batches(nano.vae, str(folder), 32, 0, FolderOptions(**options), tmp_path / "cache")


class PoisonedEncoder:
    """Latents that are not numbers when a certain picture is in batch number `first` or a later one; keeps which it saw."""

    def __init__(self, encode, picture, first):
        self.encode, self.picture, self.first, self.device, self.seen = encode, picture, first, encode.device, []

    def __call__(self, crops, images):
        self.seen.append(crops.pictures.tolist())
        latents = self.encode(crops, images)
        if len(self.seen) > self.first:
            latents[np.flatnonzero(crops.pictures == self.picture)] = float("nan")
        return latents


@pytest.mark.parametrize("stage", ["student", "one_step"])
@pytest.mark.parametrize("echo", [1, 3])
def test_the_pictures_of_the_batch_are_named_and_no_others(nano, tmp_path, stage, echo):
    own(tmp_path / "data", count=9)
    batches = batches_of(nano, tmp_path / "data", tmp_path, echo=echo, workers=0)
    batches.encode = PoisonedEncoder(
        batches.encode, picture=4, first=8
    )  # from 8 on an echoed batch has the pictures of an earlier step
    config = replace(SHORT, accumulate=3, steps=20)
    if stage == "student":
        module, parts = nano.student, (nano.vae, nano.text_encoder, nano.tokenizer, nano.reference, nano.schedule)
        loss = DistillationLoss(batches, *parts, config, every=0)
    else:
        module = nano.reference
        loss = OneStepLoss(PairSource(batches, nano.vae, nano.text_encoder, nano.tokenizer, config), nano.schedule)
    with pytest.raises(TrainingError) as caught:
        train_stage(stage, module.requires_grad_(True), loss, config, tmp_path / "out", False)
    first = next(number for number, pictures in enumerate(batches.encode.seen) if 4 in pictures and number >= 8)
    pictures = [str(batches.dataset.records[i].image) for i in dict.fromkeys(batches.encode.seen[first])]
    said = str(caught.value)
    assert f"in {stage}, step {first // 3 + 1}, batch {first} ({', '.join(pictures)}); go on from" in said
    assert re.findall(r"p\d\.png", said) == [path.rpartition("/")[2] for path in pictures]
    assert "weights" not in said and len(said.splitlines()) == 1


def test_a_weight_that_is_no_number_is_named_beside_the_pictures(nano, tmp_path, raw_tokenizer):
    own(tmp_path / "data")
    with torch.no_grad():
        name, weight = list(nano.student.named_parameters())[3]
        weight.view(-1)[0] = float("nan")
    save_checkpoint(nano, raw_tokenizer.to_str(), tmp_path / "broken")
    with pytest.raises(
        TrainingError, match=r"loss is nan.*in student, step 1, batch 0 \(.*p\d\.png.*\), weights"
    ) as caught:
        finetune(str(tmp_path / "broken"), tmp_path / "run", FinetuneConfig(scenes=4, size=32, student=SHORT),
                 data=str(tmp_path / "data"))  # fmt: skip
    assert f"weights {name} are not finite either" in str(caught.value)
    assert not torch.isfinite(dict(load_checkpoint(tmp_path / "broken").student.named_parameters())[name]).all()


def test_scenes_are_named_by_their_numbers_and_a_mixture_asks_the_set_that_was_drawn(nano, tmp_path):
    own(tmp_path / "data", count=9)
    pools = {name: build_pool(name, 6, 32, tmp_path / "pools", workers=1) for name in ("crops", "aerial")}
    cache_latents(nano.vae, pools, tmp_path / "pools")
    scenes = SceneBatches(pools, {"crops": 1.0, "aerial": 1.0}, seed=0)
    for step in range(6):
        _, drawn = scenes.draw(step, 3)
        assert scenes.pictures(step, 3) == [f"{drawn.pool.domain} scene {n}" for n in drawn.index]
    folder = batches_of(nano, tmp_path / "data", tmp_path, workers=0)
    mixed = MixedBatches([scenes, folder], [1.0, 1.0], 0)
    kinds = set()
    for step in range(12):
        batch, named = mixed.batch(step, 2, 3), mixed.pictures(step, 2)
        kinds.add(".png" in named[0])
        assert (".png" in named[0]) == (batch.drawn is None)
        if batch.drawn is not None:
            assert named == [f"{batch.drawn.pool.domain} scene {n}" for n in batch.drawn.index]
    assert kinds == {True, False}
