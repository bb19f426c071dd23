"""What a stage logs: event files that TensorBoard itself reads back, and stages of different precision in one run."""

import csv
import struct
import sys

import pytest
import torch
from accelerate.tracking import GeneralTracker
from safetensors.torch import load_file
from small_stage import colour_validator, fit
from torch import nn

from digseg_engine.errors import UsageError
from digseg_engine.training.log import Log
from digseg_engine.training.loop import StageConfig, train_stage
from digseg_engine.training.meter import Meter
from digseg_engine.training.recipe_files import recipe_settings
from digseg_engine.training.recipes.tiny import TrainConfig
from digseg_engine.training.run import in_every_stage
from digseg_engine.training.trackers import MODULES, open_trackers


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
    for stop, resume in ((30, False), (None, True)):
        config = StageConfig(50, 8, 0.01, warmup=5, stop=stop, tensorboard=True)
        train_stage("line", Line(), square, config, tmp_path, resume)
    events = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "10", "20", "30", "40", "50"]
    read = events.Scalars("mse")
    assert [event.step for event in read] == [int(row["step"]) for row in rows]
    assert [event.value for event in read] == pytest.approx([float(row["mse"]) for row in rows], abs=2e-6)
    rates = [event.value for event in events.Scalars("learning_rate")]
    assert len(rates) == 6 and rates[-1] == min(rates) < 0.001


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_without_the_package_the_option_is_refused_before_any_work(monkeypatch, name):
    monkeypatch.setitem(sys.modules, MODULES[name], None)
    with pytest.raises(UsageError, match=rf"--{name} needs the package {name}.*pip install .*\[{name}\]") as caught:
        in_every_stage(recipe_settings("tiny", TrainConfig), **{name: True})
    assert "\n" not in str(caught.value)


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


class Kept(GeneralTracker):
    """A tracker of accelerate's kind that keeps what it is told."""

    name, requires_logging_directory = "kept", False

    def __init__(self):
        super().__init__()
        self.told, self.finished = [], False

    @property
    def tracker(self):
        return self.told

    def log(self, values, step=None, **more):
        self.told.append((step, values))

    def finish(self):
        self.finished = True


def test_any_tracker_of_accelerate_gets_every_row_and_is_finished_also_when_the_run_fails(tmp_path, monkeypatch):
    tracker = Kept()
    monkeypatch.setattr("digseg_engine.training.loop.open_trackers", lambda *_: [tracker])
    fit(tmp_path / "a", validator=colour_validator(), validate_every=6)
    with (tmp_path / "a" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    told = [(step, values) for step, values in tracker.told if "mse" in values]
    assert [step for step, _ in told] == [1, 10, 12] == [int(row["step"]) for row in rows]
    for (_, values), row in zip(told, rows):
        assert values["mse"] == pytest.approx(float(row["mse"]), abs=1e-5) and values["learning_rate"] > 0
        assert values["pictures_per_second"] > 0 and values["memory_mb"] > 10
    validated = [(step, values["validation/miou"]) for step, values in tracker.told if "validation/miou" in values]
    assert [step for step, _ in validated] == [6, 12] and tracker.finished
    tracker.finished = False

    def failing(module, number):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fit(tmp_path / "b", failing)
    assert tracker.finished


def test_validations_reach_tensorboard_once_each_also_after_a_resume(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for stop, resume in ((7, False), (None, True)):
        fit(tmp_path, resume=resume, validator=colour_validator(), validate_every=4, stop=stop, tensorboard=True)
    events = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("validation/miou")] == [4, 8, 12]
    assert events.Images("validation")[-1].width > 1000


def log_records(body, block=32768):
    """The records of a `.wandb` file: LevelDB's log format behind a header of seven bytes."""
    place, whole = 7, b""
    while place + 7 <= len(body):
        if block - place % block < 7:  # too little of the block is left for the head of a record
            place += block - place % block
            continue
        length, kind = struct.unpack("<HB", body[place + 4 : place + 7])
        whole += body[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield whole
            whole = b""


def test_wandb_offline_holds_what_the_csv_holds(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2 as records

    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_CACHE_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    stage = tmp_path / "run" / "line"
    fit(tmp_path / "blind")
    fit(stage, validator=colour_validator(), validate_every=6, wandb=True)
    (path,) = stage.glob("wandb/offline-run-*/*.wandb")
    found, config = {}, {}
    for data in log_records(path.read_bytes()):
        record = records.Record.FromString(data)
        if record.HasField("run"):
            assert (record.run.project, record.run.run_group, record.run.display_name) == ("digseg", "run", "run/line")
            assert record.run.run_id == (stage / "wandb-run.txt").read_text().strip()
            config = {item.key: item.value_json for item in record.run.config.update}
        for item in record.history.item:
            name = item.key or "/".join(item.nested_key)
            found.setdefault(name, {})[record.history.step.num] = item.value_json
    assert config["learning_rate"] == "0.05"
    with (stage / "log.csv").open() as file:
        for row in csv.DictReader(file):
            assert float(found["mse"][int(row["step"])]) == pytest.approx(float(row["mse"]), abs=1e-5)
    with (stage / "validation.csv").open() as file:
        for row in csv.DictReader(file):
            assert float(found["validation/miou"][int(row["step"])]) == pytest.approx(float(row["miou"]), abs=1e-5)
    states = [
        load_file(place / "state" / "step-00000012" / "model.safetensors") for place in (stage, tmp_path / "blind")
    ]
    assert torch.equal(states[0]["layer.weight"], states[1]["layer.weight"])


def test_a_tracker_that_cannot_begin_is_one_line(tmp_path, monkeypatch):
    def refusing(self):
        raise RuntimeError("api_key not configured\n(no-tty)")

    monkeypatch.setattr("digseg_engine.training.trackers.check_trackers", lambda settings: None)
    monkeypatch.setattr("accelerate.tracking.WandBTracker.start", refusing)
    with pytest.raises(
        UsageError, match=r"--wandb cannot begin: api_key not configured \(no-tty\); log in .*WANDB_MODE=offline"
    ):
        open_trackers(StageConfig(1, 1, 0.1, wandb=True), tmp_path, 0)


def test_the_meter_counts_pictures_and_leaves_out_what_is_no_step(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("digseg_engine.training.meter.time.monotonic", lambda: clock[0])
    meter = Meter(torch.device("cpu"))
    meter.count(8), meter.count(8)
    clock[0] = 104.0
    with meter.paused():
        clock[0] = 1104.0
    first = meter.read()
    assert first["pictures_per_second"] == 4 and 10 < first["memory_mb"] < 1e6
    meter.count(8)
    clock[0] = 1108.0
    assert meter.read()["pictures_per_second"] == 2


def test_peak_memory_sees_what_was_held_for_a_moment():
    meter = Meter(torch.device("cpu"))
    held = torch.ones(int(1.05e6 / 4 * meter.read()["memory_mb"]))  # four bytes each: more than was ever held
    size = held.numel() * 4e-6
    del held
    assert meter.read()["memory_mb"] > size
