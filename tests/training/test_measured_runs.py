"""Runs that end with `quality.json`: on which pictures, on the weights that were written, and what follows for `refine`."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from dataset_trees import TREES, own
from small_stage import SHORT, short_run

from digseg_engine import Engine
from digseg_engine.errors import InputError, UsageError
from digseg_engine.evaluation.protocols import LabelledPictures
from digseg_engine.evaluation.quality import cases_of, means, measure
from digseg_engine.model.pretrained import load_checkpoint
from digseg_engine.model.quality import FILE, Figures, read_quality
from digseg_engine.training.recipe_files import bundled_recipes, read_recipe
from digseg_engine.training.recipes import measuring
from digseg_engine.training.recipes.distill import DistillConfig, distill
from digseg_engine.training.recipes.finetune import finetune
from digseg_engine.training.recipes.measuring import pictures_to_measure, said


def test_a_run_is_measured_on_a_share_of_what_it_trains_on():
    def count(most, steps):
        return pictures_to_measure(short_run(quality_pictures=most, student=replace(SHORT, steps=steps, accumulate=3)))

    assert [count(16, steps) for steps in (1, 99, 100, 267, 100_000)] == [1, 5, 6, 16, 16]  # of 6 pictures a step
    assert [count(0, 100_000), count(2, 100_000)] == [0, 2]
    with pytest.raises(UsageError, match="quality_pictures must be 0 or more, got -1"):
        short_run(quality_pictures=-1)


def test_every_bundled_recipe_measures():
    assert all(read_recipe(name).values["quality_pictures"] == 16 for name in bundled_recipes())


def test_what_is_written_is_measured_on_held_out_pictures_with_the_written_weights(nano_folder, tmp_path, capsys):
    TREES["voc2012"](tmp_path / "data")
    settings = short_run(size=32, quality_pictures=3, student=replace(SHORT, steps=5, batch=20, learning_rate=0.01))
    written = finetune(str(nano_folder), tmp_path / "run", settings, data=str(tmp_path / "data"))
    out, err = capsys.readouterr()
    figures = read_quality(written)
    told = {"on": "pictures of the val split of data", "pictures": 1, "masks": 2, "pixels": 32, "command": "digseg train",
            "device": "cpu"}  # fmt: skip
    assert figures.measured.items() >= told.items()
    sets = [LabelledPictures(tmp_path / "data", 4, None, "val")]
    assert figures == means(measure(load_checkpoint(written), cases_of(sets, 1)), figures.measured)
    assert said(figures) in out and "measuring student, reference and refine of" in err
    helpful = figures.helpful
    assert ("refused, it does not help" in said(figures)) == (not helpful)
    engine, picture = Engine.load(written, "torch", device="cpu"), np.zeros((32, 32, 3), np.uint8)
    for steps in {1, 2, 4} - set(helpful):
        with pytest.raises(UsageError, match="refine does not help this checkpoint"):
            engine.segment(picture, ["aeroplane"], refine=1, steps=steps)
    for steps in helpful:
        engine.segment(picture, ["aeroplane"], refine=1, steps=steps)


@pytest.mark.slow
def test_a_distillation_is_measured_and_without_the_setting_nothing_is(nano_folder, tmp_path):
    config = DistillConfig(scenes=4, size=64, teacher_steps=2, grid=(1,), few_step=SHORT, student=SHORT, report_scenes=1,
                           quality_pictures=1)  # fmt: skip
    figures = read_quality(distill(str(nano_folder), tmp_path / "run", config, data="scenes:crops"))
    assert figures.measured["command"] == "digseg distill" and figures.measured["on"] == "test scenes"
    assert set(figures.reference) == {1, 2, 4, 8} and set(figures.refine_truth) == {1, 2, 4}
    again = tmp_path / "run" / "checkpoint" / FILE
    before = again.read_bytes()
    distill(str(nano_folder), tmp_path / "run", config, data="scenes:crops", resume=True)
    assert again.read_bytes() == before  # nothing drawn at random is left in it
    quiet = replace(config, quality_pictures=0)
    distill(
        str(nano_folder), tmp_path / "run", quiet, data="scenes:crops", resume=True
    )  # a setting that is free to change
    assert not again.exists()  # the checkpoint was written anew


@pytest.mark.slow
@pytest.mark.parametrize("error", [InputError("p3.png is no picture"), torch.OutOfMemoryError("no room")])
def test_what_goes_wrong_while_measuring_is_said_and_the_run_is_whole(
    nano_folder, tmp_path, monkeypatch, capsys, error
):
    def failing(*parts):
        raise error

    monkeypatch.setattr(measuring, "measure", failing)
    own(tmp_path / "data")
    settings = short_run(size=32, quality_pictures=1)
    written = finetune(str(nano_folder), tmp_path / "run", settings, data=str(tmp_path / "data"))
    assert load_checkpoint(written) and not (written / FILE).exists()
    told = capsys.readouterr().err
    assert (
        f"{written} is complete, but quality.json is not in it: {error}; measure later: python benchmarks/refine.py"
        in told
    )


def test_pictures_without_anything_asked_for_give_no_figures(nano, nano_folder, tmp_path, monkeypatch, capsys):
    own(tmp_path / "data")
    monkeypatch.setattr(measuring, "cases_of", lambda sets, count: iter(()))
    found = measuring.measure_checkpoint(
        nano, nano_folder, str(tmp_path / "data"), short_run(quality_pictures=1), "test"
    )
    assert found is None and not (nano_folder / FILE).exists()
    assert "nothing that is asked for is in the held-out pictures" in capsys.readouterr().err


def test_the_weights_that_are_measured_are_those_that_were_written(nano, nano_folder):
    """They are stored in half precision: figures of others would not be those of the checkpoint."""
    assert measuring.measure_checkpoint(nano, nano_folder, "scenes:crops", short_run(quality_pictures=1), "test")
    stored = load_checkpoint(nano_folder)
    for part in ("vae", "text_encoder", "reference", "student"):
        weights, kept = (getattr(c, part).state_dict() for c in (nano, stored))
        assert all(torch.equal(weights[name], kept[name]) for name in weights), part


def test_processes_but_the_first_measure_nothing(nano, nano_folder, monkeypatch):
    monkeypatch.setattr(measuring, "PartialState", lambda: type("Second", (), {"is_main_process": False})())
    assert measuring.measure_checkpoint(nano, nano_folder, "scenes", short_run(quality_pictures=1), "test") is None
    assert not (nano_folder / FILE).exists()


def test_the_lines_say_where_refine_is_offered():
    measured = {"masks": 9, "pictures": 5, "on": "test scenes"}
    figures = Figures(0.8, {1: 0.5, 8: 0.6}, {1: 0.7, 2: 0.81, 4: 0.8}, {1: 0.9}, 0.97, measured)
    assert said(figures) == (
        "quality, mean IoU of 9 masks in 5 pictures (test scenes): student 0.800; reference 0.500 in 1, 0.600 in 8 steps; codec "
        "0.970\n  refine: 0.700 in 1, 0.810 in 2, 0.800 in 4 steps from the student's masks, offered in 2 steps"
    )
    assert said(replace(figures, refine_student={1: 0.8})).endswith("masks, refused, it does not help")
