"""Runs that are validated: which do it by default and on what, what they leave, and that their figures are evaluation's own."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import run_command
from dataset_trees import TREES, own
from launching import launch
from PIL import Image
from safetensors.torch import load_file
from test_several_processes import difference

from digseg_engine.data.batches import FolderOptions
from digseg_engine.errors import UsageError
from digseg_engine.evaluation.predictors import reference_predictor, student_predictor
from digseg_engine.evaluation.protocols import VALIDATION_SEED, LabelledPictures, TestScenes
from digseg_engine.evaluation.score import evaluate
from digseg_engine.model.pretrained import load_checkpoint
from digseg_engine.training.loop import StageConfig
from digseg_engine.training.recipe_files import recipe_settings
from digseg_engine.training.recipes.distill import DistillConfig, distill
from digseg_engine.training.recipes.finetune import FinetuneConfig, finetune
from digseg_engine.training.recipes.validating import student_validator, validated_where_held_out
from digseg_engine.worlds.scenes import scene

SHORT = StageConfig(4, 2, 1e-2, prompts=3, warmup=1, ema=0.5, optimizer="adamw", validate_every=2, validate_pictures=3)


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def divided(tmp_path):
    """A folder of six training and three validation pictures."""
    data = tmp_path / "data"
    own(data, count=9)
    for kind in ("images", "masks"):
        for n in range(9):
            split = data / kind / ("train" if n < 6 else "val")
            split.mkdir(exist_ok=True)
            (data / kind / f"p{n}.png").rename(split / f"p{n}.png")
    return data


@pytest.mark.slow
def test_the_figures_are_those_of_the_evaluation_of_the_weights_that_the_run_ends_with(nano_folder, divided, tmp_path):
    settings = FinetuneConfig(scenes=4, size=32, reference=SHORT, one_step=SHORT, student=SHORT, imitate_every=0)
    written = finetune(str(nano_folder), tmp_path / "run", settings, data=str(divided))
    made = json.loads((written / "training" / "made.json").read_text())
    assert set(made["best"]) == {"one_step", "student"}  # the stage `reference` does not segment by itself
    assert not (tmp_path / "run" / "reference" / "validation.csv").exists()
    checkpoint, samples = load_checkpoint(written), LabelledPictures(divided, 3, None, "val", 0)
    parts = {
        "student": checkpoint.student,
        "one_step": checkpoint.reference,
    }  # a checkpoint holds them in half precision
    for stage, part in parts.items():
        part.load_state_dict(load_file(tmp_path / "run" / stage / "weights.safetensors"))
    for stage, predict in (
        ("student", student_predictor(checkpoint, 32)),
        ("one_step", reference_predictor(checkpoint, 1, 32)),
    ):
        rows = rows_of(tmp_path / "run" / stage / "validation.csv")
        assert [row["step"] for row in rows] == ["2", "4"] and all(float(row["loss"]) > 0 for row in rows)
        best = made["best"][stage]
        row = next(row for row in rows if int(row["step"]) == best["step"])
        assert float(row["miou"]) == max(float(row["miou"]) for row in rows) == pytest.approx(best["miou"], abs=1e-6)
        score = evaluate(predict, samples).together
        assert score.miou() == pytest.approx(best["miou"], abs=1e-9), stage
        mcc = score.presence_mcc()
        assert (
            row["presence_mcc"] == "" if np.isnan(mcc) else float(row["presence_mcc"]) == pytest.approx(mcc, abs=1e-6)
        )
        assert (written / "training" / f"{stage}-validation.csv").is_file()
        with Image.open(written / "training" / f"{stage}-validation.png") as picture:
            assert picture.width > 1000


def test_pictures_are_chosen_by_the_seed_and_never_the_training_split(nano, divided):
    def chosen(seed, count=2):
        settings = FinetuneConfig(scenes=4, seed=seed, size=32, student=replace(SHORT, validate_pictures=count))
        (samples,) = student_validator(nano, str(divided), settings, settings.student).sets
        return [samples[i].name for i in range(len(samples))]

    assert chosen(0) == chosen(0) and len({tuple(chosen(seed)) for seed in range(8)}) > 1
    assert sorted(name.rpartition("/")[2].removesuffix(".png") for name in chosen(0, 99)) == ["p6", "p7", "p8"]


def test_scenes_to_validate_on_are_neither_trainings_nor_the_tests(nano):
    settings = FinetuneConfig(scenes=4, size=64, student=SHORT)
    sets = student_validator(nano, "scenes:crops,objects", settings, settings.student).sets
    assert [samples.name for samples in sets] == ["crops", "objects"] and [len(samples) for samples in sets] == [3, 3]
    first = sets[0].first
    assert VALIDATION_SEED <= first < VALIDATION_SEED + 1_000_000
    assert np.array_equal(sets[0][1].image, scene(first + 1, "crops", 64, "train").image)
    assert not np.array_equal(sets[0][0].image, TestScenes("crops", 1, 64)[0].image)


def test_a_recipe_validates_only_on_folders_with_a_validation_split(divided, tmp_path):
    own(tmp_path / "whole")
    recipe = recipe_settings("finetune-100", FinetuneConfig)
    every = [
        validated_where_held_out(replace(recipe, folder=options), data).student.validate_every
        for data, options in (
            (str(divided), FolderOptions()),
            (str(divided), FolderOptions(split="val")),
            (str(divided), FolderOptions(split="all")),
            (str(tmp_path / "whole"), FolderOptions()),
            ([str(divided), str(tmp_path / "whole")], FolderOptions()),
            ([str(divided), "scenes"], FolderOptions()),
            ("scenes", FolderOptions()),
        )
    ]
    assert every == [50, 0, 0, 0, 0, 0, 0]


@pytest.mark.slow
def test_the_command_line_validates_and_can_be_told_not_to(nano_folder, divided, tmp_path):
    quick = ("digseg", "train", "--init", str(nano_folder), "--data", "data", "--size", "32", "--scale", "0.02")
    done = run_command(*quick, "-o", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "student: 4 steps of 8 pictures" in done.stdout and "validated every 1" in done.stdout
    assert "student: after step 4: validation mean IoU" in done.stdout
    assert len(rows_of(tmp_path / "run" / "student" / "validation.csv")) == 4
    done = run_command(*quick, "-o", "blind", "--validate-every", "0", cwd=tmp_path)
    assert done.returncode == 0 and "validated" not in done.stdout
    assert not (tmp_path / "blind" / "student" / "validation.csv").exists()
    logs = [rows_of(tmp_path / name / "student" / "log.csv") for name in ("run", "blind")]
    assert [row["bce"] for row in logs[0]] == [row["bce"] for row in logs[1]]
    assert all(float(row["pictures_per_second"]) > 0 and float(row["memory_mb"]) > 50 for row in logs[0])


def test_on_a_folder_that_holds_nothing_out_it_is_said(nano, tmp_path, capsys):
    own(tmp_path / "whole")
    settings = FinetuneConfig(scenes=4, size=32, student=SHORT)
    validator = student_validator(nano, str(tmp_path / "whole"), settings, settings.student, lambda batches: None)
    assert "has no held-out split" in capsys.readouterr().err and not validator.losses
    with pytest.raises(UsageError, match="validate_pictures 1 or more"):
        student_validator(nano, "scenes", settings, replace(SHORT, validate_pictures=0))


@pytest.mark.slow
def test_both_stages_of_a_distillation_are_validated(nano_folder, tmp_path):
    TREES["voc2012"](tmp_path / "data")
    config = DistillConfig(
        scenes=4, imitate_every=2, size=32, teacher_steps=2, grid=(1,), few_step=SHORT, student=SHORT, report_scenes=1
    )
    written = distill(str(nano_folder), tmp_path / "run", config, data=str(tmp_path / "data"))
    for stage in ("few_step", "student"):
        assert len(rows_of(tmp_path / "run" / stage / "validation.csv")) == 2
        best = load_file(tmp_path / "run" / stage / "best.safetensors")
        weights = load_file(tmp_path / "run" / stage / "weights.safetensors")
        assert all(torch.equal(best[name], weights[name]) for name in weights)
    assert set(json.loads((written / "training" / "made.json").read_text())["best"]) == {"few_step", "student"}


@pytest.mark.slow
@pytest.mark.parametrize("how", [(), ("shard",)])
def test_two_processes_share_a_validation_and_come_to_the_figures_of_one(tmp_path, how):
    alone, both = tmp_path / "alone", tmp_path / "both"
    for folder, processes in ((alone, 1), (both, 2)):
        done = launch(processes, "several_processes_validated.py", tmp_path, folder, 2, *how)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (rows_of(folder / "validation.csv") for folder in (alone, both))
    assert [row["step"] for row in one] == [row["step"] for row in two] and len(one) < 16  # ended early, both
    for a, b in zip(one, two):
        for name in ("miou", "loss"):
            assert float(a[name]) == pytest.approx(float(b[name]), abs=2e-3), name
    assert difference(alone / "best.safetensors", both / "best.safetensors") < 1e-4
    asked = [(both / f"asked-{rank}.txt").read_text().split() for rank in range(2)]
    assert asked[0][:3] == ["0", "2", "4"] and asked[1][:2] == ["1", "3"]
