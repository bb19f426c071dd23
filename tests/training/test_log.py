"""What a stage logs: event files that TensorBoard itself reads back, and stages of different precision in one run."""

import builtins
import csv

import pytest
import torch
from torch import nn

from digseg_engine.errors import UsageError
from digseg_engine.training.log import Log
from digseg_engine.training.loop import StageConfig, train_stage
from digseg_engine.training.recipe_files import recipe_settings
from digseg_engine.training.recipes.tiny import TrainConfig
from digseg_engine.training.run import in_every_stage


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, x):
        return self.layer(x)


def square(module, number):
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(number))
    value = module(x).float().square().mean()
    return value, {"mse": float(value.detach())}


def test_events_hold_what_the_csv_holds_also_after_a_resume(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for stop, resume in ((31, False), (None, True)):
        config = StageConfig(50, 8, 0.01, warmup=5, stop=stop, tensorboard=True)
        train_stage("line", Line(), square, config, tmp_path, resume)
    events = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "10", "20", "30", "40", "49"]
    read = events.Scalars("mse")
    assert [event.step for event in read] == [int(row["step"]) for row in rows]
    assert [event.value for event in read] == pytest.approx([float(row["mse"]) for row in rows], abs=2e-6)
    rates = [event.value for event in events.Scalars("learning_rate")]
    assert len(rates) == 6 and rates[-1] == min(rates) < 0.001


def test_without_the_package_the_option_is_refused_before_any_work(monkeypatch):
    really = builtins.__import__

    def blocked(name, *rest, **more):
        if name.partition(".")[0] == "tensorboard" or name == "torch.utils.tensorboard":
            raise ImportError(name)
        return really(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", blocked)
    with pytest.raises(UsageError, match=r"needs the package tensorboard.*pip install .*\[tensorboard\]"):
        in_every_stage(recipe_settings("tiny", TrainConfig), tensorboard=True)


def test_every_stage_of_a_run_has_its_own_precision(tmp_path):
    seen = {}

    def noting(name):
        def loss(module, number):
            value, parts = square(module, number)
            with torch.no_grad():
                seen[name] = module(torch.ones(1, 64)).dtype, torch.is_autocast_enabled("cpu")
            return value, parts

        return loss

    weights = {}
    for name, precision in (("a", "no"), ("b", "bf16"), ("c", "no")):
        torch.manual_seed(0)
        model = Line()
        config = StageConfig(5, 8, 0.01, warmup=1, ema=0.995, optimizer="muon", precision=precision)
        weights[name] = train_stage(name, model, noting(name), config, tmp_path / name, False).layer.weight.detach()
    assert seen["a"] == seen["c"] == (torch.float32, False)
    assert seen["b"][1]  # its forward pass ran under bfloat16 autocast
    assert torch.equal(weights["a"], weights["c"]) and not torch.equal(weights["a"], weights["b"])
    assert weights["b"].dtype == torch.float32 and torch.allclose(weights["a"], weights["b"], atol=1e-2)


def test_after_a_stage_in_mixed_precision_the_module_is_plain_again(tmp_path):
    model = Line()
    train_stage("a", model, square, StageConfig(2, 8, 0.01, warmup=1, precision="bf16"), tmp_path / "a", False)
    assert model(torch.ones(1, 64)).dtype == torch.float32 and "forward" not in vars(model)

    def noting(module, number):
        assert module.layer(torch.ones(1, 64)).dtype == torch.float32
        return square(module, number)

    train_stage("b", model, noting, StageConfig(2, 8, 0.01, warmup=1), tmp_path / "b", False)

    def failing(module, number):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train_stage("c", model, failing, StageConfig(2, 8, 0.01, precision="bf16"), tmp_path / "c", False)
    assert "forward" not in vars(model) and not torch.is_autocast_enabled("cpu")


def test_a_row_is_the_mean_since_the_row_before_and_rare_parts_leave_a_gap(tmp_path):
    log = Log(tmp_path / "log.csv", 0, True)
    for step in range(31):
        log.note({"mse": float(step), **({"rare": 5.0} if step % 16 == 0 else {})})
        if step % 10 == 0:
            log.add(step, 0.1)
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["mse"]) for row in rows] == [0.0, 5.5, 15.5, 25.5]
    assert [row["rare"] for row in rows] == ["5.0", "", "5.0", ""]
    log.draw("line")
    assert (tmp_path / "curve.png").stat().st_size > 5000
