"""The folder of a run: what it says was run is what was run, and nothing left behind stands in the way of the next command."""

import json
from dataclasses import dataclass, replace

import pytest
import torch
from small_stage import SETTINGS, Line, failing_at, line_loss, short_run

from digseg_engine.errors import CheckpointError, InputError, TrainingError, UsageError
from digseg_engine.training.interruption import TrainingInterruptedError
from digseg_engine.training.loop import StageConfig
from digseg_engine.training.recipes.distill import distill
from digseg_engine.training.recipes.finetune import finetune
from digseg_engine.training.record import settings_in_force
from digseg_engine.training.run import Run, divided, scaled


@dataclass(frozen=True)
class TwoStages:
    seed: int = 0
    scenes: int = 100
    first: StageConfig = SETTINGS
    second: StageConfig = SETTINGS


def train_both(out, settings=TwoStages(), resume=False, override=False, data="scenes", loss=line_loss):
    run = Run(out, resume, settings.seed, override)
    run.describe(settings, data=data)
    torch.manual_seed(0)
    model = Line()
    run.stage("first", model, line_loss, settings.first)
    run.stage("second", model, loss, settings.second)
    return model.layer.weight.detach().clone()


@pytest.fixture
def cut(tmp_path):
    """A run whose second stage ended after step 7, saved at step 5."""
    with pytest.raises(ZeroDivisionError):
        train_both(tmp_path / "run", loss=failing_at(7, ZeroDivisionError))
    return tmp_path / "run"


def test_resume_with_the_same_settings_changes_no_record(cut, tmp_path, capsys):
    before = (cut / "train.json").read_bytes()
    capsys.readouterr()
    resumed = train_both(cut, resume=True)
    assert torch.equal(resumed, train_both(tmp_path / "whole"))
    assert (cut / "train.json").read_bytes() == before and not (cut / "changes.json").exists()
    assert "first: already trained" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "data", "words"),
    [
        (TwoStages(), "scenes:crops", "data: scenes before, scenes:crops now"),
        (TwoStages(seed=3), "scenes", "seed: 0 before, 3 now"),
        (TwoStages(scenes=7), "scenes", "scenes: 100 before, 7 now"),
        (TwoStages(second=replace(SETTINGS, steps=20)), "scenes", "second.steps: 12 before, 20 now"),
        (
            TwoStages(second=replace(SETTINGS, learning_rate=0.5)),
            "scenes",
            "second.learning_rate: 0.05 before, 0.5 now",
        ),
        (TwoStages(second=replace(SETTINGS, batch=3)), "scenes", "second.batch: 8 before, 3 now"),
        (TwoStages(second=replace(SETTINGS, precision="bf16")), "scenes", "second.precision: auto before, bf16 now"),
    ],
)
def test_every_difference_is_named_and_refused(cut, settings, data, words):
    before = (cut / "train.json").read_bytes()
    with pytest.raises(UsageError, match="--override") as caught:
        train_both(cut, settings, resume=True, data=data)
    assert words in str(caught.value) and (cut / "train.json").read_bytes() == before


def test_one_folder_is_the_same_however_its_path_is_written(tmp_path, monkeypatch):
    for name in ("mydata", "other"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ZeroDivisionError):
        train_both(tmp_path / "run", data="mydata", loss=failing_at(7, ZeroDivisionError))
    with pytest.raises(UsageError, match=r"cannot resume .* with other settings: data: mydata before"):
        train_both(tmp_path / "run", resume=True, data=str(tmp_path / "other"))
    train_both(tmp_path / "run", resume=True, data=str(tmp_path / "mydata"))
    assert json.loads((tmp_path / "run" / "train.json").read_text())["data"] == "mydata"


@pytest.mark.slow
def test_told_to_go_on_with_other_settings_the_run_keeps_both_records(cut):
    begun = (cut / "train.json").read_bytes()
    changed = TwoStages(seed=3, second=replace(SETTINGS, learning_rate=0.01, steps=20))
    train_both(cut, changed, resume=True, override=True, data="scenes:crops")
    (change,) = json.loads((cut / "changes.json").read_text())
    assert (change["stage"], change["step"]) == ("second", 5)
    assert change["changed"]["second.learning_rate"] == {"before": 0.05, "after": 0.01}
    assert change["changed"]["data"] == {"before": "scenes", "after": "scenes:crops"}
    assert (cut / "train.json").read_bytes() == begun
    assert settings_in_force(cut)["second.steps"] == 20
    with pytest.raises(UsageError, match=r"second.steps: 20 before, 12 now"):
        train_both(cut, resume=True)


def test_settings_of_a_stage_that_is_complete_stay_whatever_is_told(cut):
    changed = TwoStages(first=replace(SETTINGS, steps=20))
    with pytest.raises(UsageError, match=r"another first.steps \(12 before, 20 now\), not even with --override"):
        train_both(cut, changed, resume=True, override=True)


def test_override_without_resume_is_refused(tmp_path):
    with pytest.raises(UsageError, match="needs --resume"):
        Run(tmp_path, False, 0, override=True)


def test_a_run_that_saved_nothing_does_not_block_the_corrected_command(tmp_path):
    run = Run(tmp_path, False, 0)
    run.describe(TwoStages(), data="scenes:crops")
    with pytest.raises(ZeroDivisionError):
        run.stage("first", Line(), failing_at(3, ZeroDivisionError), SETTINGS)
    train_both(tmp_path, TwoStages(seed=1), data="scenes")
    assert settings_in_force(tmp_path)["seed"] == 1 and settings_in_force(tmp_path)["data"] == "scenes"
    with pytest.raises(UsageError, match="is not empty"):
        train_both(tmp_path)


def test_foreign_files_are_never_taken_for_a_run(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty"):
        Run(tmp_path, False, 0)


def test_a_foreign_file_in_the_place_of_the_checkpoint_is_refused_before_training(cut):
    (cut / "checkpoint").mkdir()
    (cut / "checkpoint" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"checkpoint exists and is not a checkpoint \(it has no digseg.json\)"):
        train_both(cut, resume=True)


def test_a_stage_left_off_as_told_is_not_complete(tmp_path):
    with pytest.raises(TrainingInterruptedError, match="left off after step 6 of 12"):
        train_both(tmp_path / "run", TwoStages(first=replace(SETTINGS, stop=6)))
    assert torch.equal(train_both(tmp_path / "run", resume=True), train_both(tmp_path / "whole"))


def test_a_torn_log_is_mended_on_resume(cut):
    with (cut / "second" / "log.csv").open("a") as file:
        file.write("8,0")
    train_both(cut, resume=True)
    rows = (cut / "second" / "log.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", "1", "10", "12"]


def test_data_and_size_are_checked_before_anything_is_written(nano_folder, tmp_path):
    short = short_run(size=32)
    for number, (data, settings, kind) in enumerate(
        [("mien", short, UsageError), ("scenes:moon", short, UsageError), (str(tmp_path), short, InputError),
         ("scenes", replace(short, size=33), UsageError)]
    ):  # fmt: skip
        out = tmp_path / f"out{number}"
        with pytest.raises(kind):
            finetune(str(nano_folder), out, settings, data=data)
        assert not out.exists(), data
    with pytest.raises(UsageError):
        distill(str(nano_folder), tmp_path / "distilled", data="mien")
    assert not (tmp_path / "distilled").exists()


def test_an_exported_bundle_is_no_start(tmp_path):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"exported bundle.*digseg-tiny"):
        finetune(str(tmp_path / "bundle"), tmp_path / "out")


def test_a_scaled_run_keeps_the_shares_of_warm_up_and_averaging():
    stage = scaled(TwoStages(first=StageConfig(1000, 8, 0.1, warmup=100, ema=0.99)), 0.1).first
    assert (stage.steps, stage.warmup, stage.ema) == (100, 10, 0.9)
    shortest = scaled(TwoStages(first=StageConfig(1000, 8, 0.1, warmup=100, ema=0.99)), 0.0001).first
    assert (shortest.steps, shortest.warmup, shortest.ema) == (2, 1, 0.0)


def test_a_damaged_record_is_one_line(cut):
    (cut / "train.json").write_text("{")
    with pytest.raises(TrainingError, match=r"train.json cannot be read"):
        train_both(cut, resume=True)


@pytest.mark.parametrize(
    ("batch", "accumulate", "processes", "shared"),
    [
        (8, 1, 1, (8, 1)),
        (8, 1, 2, (4, 2)),
        (4, 8, 4, (4, 8)),
        (2, 16, 32, (1, 32)),
        (6, 2, 3, (2, 6)),
        (8, 6, 4, (4, 12)),
    ],
)
def test_processes_share_the_pictures_of_a_step(batch, accumulate, processes, shared):
    stage = replace(SETTINGS, batch=batch, accumulate=accumulate)
    settings = divided(TwoStages(first=stage, second=stage), processes)
    assert (settings.first.batch, settings.first.accumulate) == shared
    assert shared[0] * shared[1] == batch * accumulate and shared[1] % processes == 0


def test_pictures_that_processes_cannot_share_are_refused():
    with pytest.raises(UsageError, match=r"3 processes cannot share the 8 pictures of a step of first \(8 x 1\)"):
        divided(TwoStages(), 3)


def test_a_begun_stage_keeps_the_rank_of_its_adapters(tmp_path):
    def described(rank, resume=True):
        settings = TwoStages(first=replace(SETTINGS, lora=rank))
        Run(tmp_path / "run", resume, override=resume, seed=0).describe(settings)

    described(2, resume=False)
    described(4)  # nothing was trained yet
    (tmp_path / "run" / "first" / "state" / "step-00000002").mkdir(parents=True)
    described(4)
    with pytest.raises(UsageError, match=r"another first.lora \(4 before, 3 now\), not even with --override"):
        described(3)
