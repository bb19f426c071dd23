"""Validation while a stage trains: it disturbs nothing, keeps the best weights, stops in time, and survives interruptions."""

import csv
import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from small_stage import Colours, Line, colour_validator, fit, line_loss

from digseg_engine.errors import UsageError
from digseg_engine.evaluation.metrics import Score, matthews
from digseg_engine.training.log import curve
from digseg_engine.training.loop import StageConfig
from digseg_engine.training.recipe_files import recipe_settings
from digseg_engine.training.recipes.finetune import FinetuneConfig
from digseg_engine.training.recipes.tiny import TrainConfig
from digseg_engine.training.run import scaled
from digseg_engine.training.validation import best_of, undisturbed


class Killed(BaseException):
    """Stands for a kill: nothing of ours catches it."""


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def without_seconds(path):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows_of(path)]


def turning(peak, kill_at=-1, asked=None):
    """A loss that teaches the right weights up to step `peak` and the opposite ones from then on."""

    def loss(model, number):
        if asked is not None:
            asked.append(number)
        if number == kill_at:
            raise Killed
        value, parts = line_loss(model, number)
        if number >= peak:
            x = torch.randn(8, 3, generator=torch.Generator().manual_seed(number))
            value = (model(x)[:, 0] + 5 * x.sum(1)).square().mean() + 0.01 * torch.rand(())
        return value, parts

    return loss


WATCHED = {"validate_every": 1, "ema": 0.1, "steps": 16, "learning_rate": 0.3, "optimizer": "adamw"}


def test_training_is_bit_for_bit_the_same_with_and_without_validation(tmp_path):
    for name, more in (
        ("blind", {}),
        ("watched", {"validator": colour_validator(losses=[line_loss], batches=2), "validate_every": 1}),
    ):
        np.random.seed(1), random.seed(1)
        fit(tmp_path / name, **more)
    for step in ("00000010", "00000012"):
        one, two = (tmp_path / name / "state" / f"step-{step}" for name in ("blind", "watched"))
        for file in ("model", "average", "optimizer", "random-0"):
            a, b = load_file(one / f"{file}.safetensors"), load_file(two / f"{file}.safetensors")
            assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a), file
        with safe_open(one / "random-0.safetensors", "pt") as a, safe_open(two / "random-0.safetensors", "pt") as b:
            assert a.metadata() == b.metadata()  # Python's and NumPy's
    assert [row["step"] for row in rows_of(tmp_path / "watched" / "validation.csv")] == [str(n + 1) for n in range(12)]
    assert not (tmp_path / "blind" / "validation.csv").exists()


def test_random_states_are_put_back():
    def drawn():
        return torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()

    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    expected = drawn()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    with undisturbed(torch.device("cpu")):
        drawn()
    assert drawn() == expected


def test_the_stage_ends_with_the_best_of_the_averaged_weights(tmp_path, capsys):
    seen = []
    ended = fit(tmp_path, turning(6), validator=colour_validator(seen), **WATCHED)
    figures = [float(row["miou"]) for row in rows_of(tmp_path / "validation.csv")]
    best = int(np.argmax(figures))
    assert 0 < best < 12 and figures[-1] < figures[best] - 0.1
    assert torch.equal(ended, seen[best])
    assert torch.equal(load_file(tmp_path / "best.safetensors")["layer.weight"], ended)
    state = load_file(tmp_path / "state" / "step-00000016" / "average.safetensors")
    assert torch.equal(state["module.layer.weight"], seen[-1]) and not torch.equal(seen[-1], ended)
    assert best_of(tmp_path) == {"step": best + 1, "miou": pytest.approx(figures[best], abs=1e-5)}
    said = capsys.readouterr().out
    assert f"ends with the weights after step {best + 1}, mean IoU {figures[best]:.3f}" in said
    assert f"line: after step {best + 1}: validation mean IoU {figures[best]:.3f}" in said


INTERRUPTED = {**WATCHED, "validate_every": 2, "save_every": 3, "early_stop": 3}


@pytest.fixture(scope="module")
def wholes(tmp_path_factory):
    """Runs that nobody interrupted, by the step at which their loss turns: folder and final weights."""
    folders = {peak: tmp_path_factory.mktemp("whole") for peak in (3, 9)}
    return {
        peak: (folder, fit(folder, turning(peak), validator=colour_validator(), **INTERRUPTED))
        for peak, folder in folders.items()
    }


@pytest.mark.parametrize(("peak", "kill_at"), [(3, 1), (3, 5), (3, 7), (9, 4), (9, 8), (9, 11), (9, 15)])
def test_interrupted_anywhere_and_resumed_is_the_undisturbed_run(tmp_path, wholes, peak, kill_at):
    """Also where the best came after the last saved state, with the patience half spent, and after an early end."""
    one, whole = wholes[peak]
    done = int(rows_of(one / "validation.csv")[-1]["step"])
    try:
        fit(tmp_path, turning(peak, kill_at), validator=colour_validator(), **INTERRUPTED)
        assert kill_at >= done
    except Killed:
        assert kill_at < done
    resumed = fit(tmp_path, turning(peak), resume=True, validator=colour_validator(), **INTERRUPTED)
    assert torch.equal(resumed, whole)
    two = tmp_path
    assert without_seconds(one / "validation.csv") == without_seconds(two / "validation.csv")
    best = [load_file(run / "best.safetensors")["layer.weight"] for run in (one, two)]
    assert torch.equal(*best) and best_of(one) == best_of(two)
    last = sorted(path.name for path in (one / "state").iterdir())[-1]
    records = [json.loads((run / "state" / last / "state.json").read_text())["validation"] for run in (one, two)]
    assert records[0] == records[1]


def test_a_state_brings_the_best_weights_of_its_own_time(tmp_path):
    """What came after it is trained again, perhaps with other settings, and must not stand as the best."""
    settings = {**WATCHED, "validate_every": 2, "save_every": 4}
    seen = []
    with pytest.raises(Killed):
        fit(tmp_path, turning(99, kill_at=7), validator=colour_validator(seen), **settings)
    assert best_of(tmp_path)["step"] == 6  # validated after 2, 4, 6; saved after 4
    with pytest.raises(Killed):
        fit(tmp_path, turning(0, kill_at=5), resume=True, validator=colour_validator(), **settings)
    assert best_of(tmp_path)["step"] == 4
    assert torch.equal(load_file(tmp_path / "best.safetensors")["layer.weight"], seen[1])


def test_a_run_that_begins_anew_forgets_the_best_of_the_one_before(tmp_path):
    with pytest.raises(Killed):  # validated, and nothing saved
        fit(tmp_path, turning(99, kill_at=4), validator=colour_validator(), **WATCHED, save_every=10)
    assert best_of(tmp_path) is not None
    for resume in (True, False):
        with pytest.raises(Killed):
            fit(tmp_path, turning(99, kill_at=0), resume=resume, validator=colour_validator(), **WATCHED, save_every=10)
        assert best_of(tmp_path) is None and not (tmp_path / "validation.csv").exists()


def test_a_stage_that_improves_no_more_ends_early_and_stays_ended(tmp_path, capsys):
    asked = []
    settings = {**WATCHED, "early_stop": 2, "steps": 40}
    ended = fit(tmp_path, turning(6, asked=asked), validator=colour_validator(), **settings)
    figures = [float(row["miou"]) for row in rows_of(tmp_path / "validation.csv")]
    best = int(np.argmax(figures))
    assert len(figures) == len(asked) < 40 and len(figures) == best + 3
    assert f"stopped after step {best + 3} of 40: 2 validations without a better mean IoU" in capsys.readouterr().out
    asked.clear()  # killed before its weights were written: the state says that it is enough
    again = fit(tmp_path, turning(6, asked=asked), resume=True, validator=colour_validator(), **settings)
    assert torch.equal(again, ended) and not asked


def test_patience_without_validation_is_refused():
    from digseg_engine.commands.train import adjusted, watching

    quick = recipe_settings("finetune-100", FinetuneConfig)
    unwatched = replace(quick, student=replace(quick.student, validate_every=0))
    with pytest.raises(UsageError, match="--early-stop counts validations"):
        adjusted(unwatched, 1, watching(False, False, None, 3), [])
    settings = adjusted(quick, 0.1, watching(False, False, 7, 3), ["student.validate_pictures=5"])
    assert (settings.student.validate_every, settings.student.early_stop, settings.student.validate_pictures) == (
        7,
        3,
        5,
    )
    whole = recipe_settings("finetune-all", FinetuneConfig)
    set_by_stage = adjusted(whole, 1, watching(False, False, None, 3), ["student.validate_every=9"])
    assert (set_by_stage.student.validate_every, set_by_stage.reference.validate_every) == (9, 0)


def test_a_scaled_run_is_validated_as_often():
    config = replace(recipe_settings("tiny", TrainConfig), student=StageConfig(200, 8, 0.1, validate_every=50))
    assert scaled(config, 0.1).student.validate_every == 5
    assert scaled(config, 0.001).student.validate_every == 1
    assert scaled(recipe_settings("tiny", TrainConfig), 0.1).student.validate_every == 0


def test_figures_of_a_module_that_is_right_and_of_one_that_is_not(tmp_path):
    """Every weight 1: red + green + blue > 0 is "bright", and "dark", also asked for, is everywhere where it must not be."""

    def still(weight):
        def loss(model, number):
            with torch.no_grad():
                model.layer.weight.copy_(torch.tensor(weight))
                model.layer.bias.copy_(torch.tensor([0.0, -9.0]))
            return model(torch.ones(1, 3)).sum() * 0, {"x": 0.0}

        return loss

    settings = {"ema": 0.0, "weight_decay": 0.0, "validate_every": 12}
    fit(tmp_path / "right", still([[1.0] * 3, [0.0] * 3]), validator=colour_validator(losses=[still([[1.0] * 3] * 2)], batches=2),
        **settings)  # fmt: skip
    (row,) = rows_of(tmp_path / "right" / "validation.csv")
    assert float(row["miou"]) == 1 and float(row["presence_mcc"]) == 1 and float(row["loss"]) == 0
    fit(tmp_path / "wrong", still([[-1.0] * 3, [9.0] * 3]), validator=colour_validator(), **settings)
    (row,) = rows_of(tmp_path / "wrong" / "validation.csv")
    assert float(row["miou"]) == 0
    assert row["presence_mcc"] == ""  # "yes" to everything: undefined, and no number is made up


def test_matthews_against_counts_by_hand():
    assert matthews(np.array([[5, 1], [2, 4]])) == pytest.approx((4 * 5 - 1 * 2) / (5 * 6 * 6 * 7) ** 0.5)
    assert matthews(np.array([[3, 0], [0, 2]])) == 1 and matthews(np.array([[0, 3], [2, 0]])) == -1
    assert np.isnan(matthews(np.array([[0, 0], [2, 4]])))


@pytest.mark.parametrize("exclusive", [False, True])
def test_presence_counts_pairs_by_any_pixel_that_counts(exclusive):
    score = Score(["a", "b"], exclusive=exclusive)
    truth, predicted, valid = np.zeros((2, 4, 4), bool), np.zeros((2, 4, 4), bool), np.ones((4, 4), bool)
    truth[0, 0, 0] = predicted[1, 3, 3] = True
    score.add(predicted, truth, valid)  # a: missed, b: made up
    valid[3, 3] = False
    score.add(predicted, truth, valid)  # a: missed; b's one pixel does not count
    predicted[0, 1, 1] = True
    score.add(predicted, truth)  # a: found; b: made up
    assert score.presence.tolist() == [[1, 2], [2, 1]]


def test_the_curve_shows_the_figures_on_an_axis_of_their_own(tmp_path):
    fit(tmp_path, validator=colour_validator(losses=[line_loss], batches=1), validate_every=4)
    shown = curve(tmp_path / "log.csv", "line")
    losses, quality = ([line.get_label() for line in axes.get_lines()] for axes in shown.axes)
    assert "validation loss" in losses and "mse" in losses and "pictures_per_second" not in losses
    rows = rows_of(tmp_path / "validation.csv")
    assert quality == ["validation miou"] and not any(row["presence_mcc"] for row in rows)  # nothing is absent here
    (miou,) = shown.axes[1].get_lines()
    assert miou.get_xydata().tolist() == [pytest.approx([float(row["step"]), float(row["miou"])]) for row in rows]


def test_predictions_are_shown_beside_truth(tmp_path):
    fit(tmp_path, validator=colour_validator(), validate_every=12)
    with Image.open(tmp_path / "validation.png") as picture:
        assert picture.width > 1000 and len(picture.convert("RGB").getcolors(1 << 20)) > 100


def test_best_weights_in_a_state_take_no_space_of_their_own(tmp_path):
    fit(tmp_path, validator=colour_validator(), validate_every=12)
    kept = tmp_path / "state" / "step-00000012" / "best.safetensors"
    assert kept.samefile(tmp_path / "best.safetensors")
    with safe_open(kept, "pt") as file:
        assert file.metadata()["step"] == "12"


def test_weights_that_wait_in_the_cpu_visit_and_go_home(tmp_path):
    seen = []
    fit(tmp_path / "a", validator=colour_validator(seen), validate_every=6)
    fit(tmp_path / "b", validator=colour_validator(seen), validate_every=6, average_on_cpu=True)
    assert torch.equal(seen[1], seen[3])


def test_every_second_picture_has_pixels_that_do_not_count():
    """Of the small set itself: the tests above would not see a validation that counts ignored pixels otherwise."""
    assert [bool(Colours()[i].valid.all()) for i in range(4)] == [True, False, True, False]
    assert Line()(torch.ones(1, 3)).shape == (1, 2)
