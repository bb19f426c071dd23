"""Weights, moments and averages divided among two processes: the same training, half the moments each, states as of any run."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from launching import launch
from safetensors.torch import load_file
from small_stage import SETTINGS, SHORT, fit, short_run

from digseg_engine.errors import UsageError
from digseg_engine.training import sharding
from digseg_engine.training.loop import averaged
from digseg_engine.training.run import Run


def train(folder, processes, kill_at=-1, mode="new", how="shard"):
    return launch(processes, "several_processes_sharded.py", folder.parent, folder, kill_at, mode, how)


def trained(folder, processes, *given, **named):
    """The moments of every process."""
    done = train(folder, processes, *given, **named)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"moments-{process}.json").read_text()) for process in range(processes)]


def difference(one, two, file="weights.safetensors"):
    a, b = load_file(one / file), load_file(two / file)
    assert a.keys() == b.keys()
    return max(float((a[name].flatten() - b[name].flatten()).abs().max()) for name in a)


@pytest.mark.slow
def test_two_processes_divide_what_one_has_and_train_alike(tmp_path):
    alone, both, cut, fewer = (tmp_path / name for name in ("alone", "both", "cut", "fewer"))
    (whole,) = trained(alone, 1)  # one process has nothing to divide with
    halves = trained(both, 2)
    assert sum(halves) == whole and max(halves) < 0.6 * whole
    assert difference(alone, both) < 1e-4
    last = "state/step-00000006"
    for file in ("model", "average", "optimizer"):
        assert difference(alone / last, both / last, f"{file}.safetensors") < 1e-4
    assert train(cut, 2, kill_at=9).returncode != 0  # in the fifth step of six; saved after the fourth
    shutil.copytree(cut, fewer)
    trained(cut, 2, mode="resume")
    assert difference(both, cut) == 0
    done = train(fewer, 1, mode="resume", how="whole")  # undivided, on another number of processes
    assert done.returncode == 0, done.stderr[-3000:]
    assert "divided among the processes, or whole again" in done.stderr and "the state is of 2 processes" in done.stderr
    assert difference(both, fewer) < 1e-4


@pytest.mark.slow
def test_a_run_that_was_whole_goes_on_divided(tmp_path):
    alone, cut = tmp_path / "alone", tmp_path / "cut"
    trained(alone, 1, how="whole")
    assert train(cut, 1, kill_at=9, how="whole").returncode != 0
    trained(cut, 2, mode="resume")
    assert difference(alone, cut) < 1e-4


@pytest.mark.parametrize(
    ("setting", "instead"),
    [({"optimizer": "muon"}, "adamw"), ({"precision": "fp16"}, "bf16"), ({"compile": True}, "false"),
     ({"average_on_cpu": True}, "false"), ({"channels_last": True}, "false")],
)  # fmt: skip
def test_what_does_not_work_on_divided_weights_is_refused(setting, instead):
    name, value = next(iter(setting.items()))
    config = replace(SETTINGS, optimizer="adamw", shard=True)
    sharding.check_sharding("reference", config)
    with pytest.raises(UsageError, match=rf"reference\.shard does not work together with reference\.{name}={value}; set "
                       rf"reference\.{name}={instead}, or reference\.shard=false"):  # fmt: skip
        sharding.check_sharding("reference", replace(config, **setting))


def test_a_run_is_refused_before_its_first_stage(tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "divides", lambda name, config, processes: config.shard)  # as in two processes
    settings = short_run(one_step=replace(SHORT, optimizer="muon", shard=True))
    with pytest.raises(UsageError, match=r"one_step\.shard does not work together with one_step\.optimizer=muon"):
        Run(tmp_path / "run", False, 0).describe(settings)
    assert not (tmp_path / "run" / "train.json").exists()


def test_alone_or_in_a_stage_that_is_asked_in_parts_nothing_is_divided(tmp_path):
    assert torch.equal(fit(tmp_path / "one", shard=True), fit(tmp_path / "two"))  # the stage is none of the reference's


def test_wrapping_by_the_launcher_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UsageError, match=r"launch without it .* and add --set reference\.shard=true"):
        fit(tmp_path)


def test_an_average_that_is_not_divided_answers_itself():
    average = averaged(torch.nn.Linear(2, 2), SETTINGS)
    assert average.whole is None and set(average.state_dict()) == {"n_averaged", "module.weight", "module.bias"}
