"""What the planner counts is what a stage takes, and every thrift of memory leaves the training as it was."""

from dataclasses import replace

import pytest
import torch
from nano_models import build_nano
from safetensors.torch import load_file
from small_stage import short_run

from digseg_engine.cli import main
from digseg_engine.errors import UsageError
from digseg_engine.training.loop import StageConfig, train_stage
from digseg_engine.training.memory import MemoryCounter, ShapedBatches, StageMemory, count_stage, drop, stage_work
from digseg_engine.training.planner import differences, plan, said, thriftier
from digseg_engine.training.recipes.finetune import outline, plan_finetune
from digseg_engine.training.run import stages_of, with_settings
from digseg_engine.training.state import _save_tensors
from digseg_engine.training.thrift import make_optimizer, recomputing, resolve_precision
from tests.model.sd_directories import write_directory

CONFIG = StageConfig(2, 4, 1e-3, prompts=3, warmup=1, optimizer="adamw", precision="no")
STAGES = ("reference", "one_step", "few_step", "student")


@pytest.fixture
def build(nano_preset, raw_tokenizer):
    return lambda: build_nano(nano_preset, raw_tokenizer)


def work(build, name, config=CONFIG, size=64):
    checkpoint = build()
    batches = ShapedBatches(checkpoint, size, True)
    return checkpoint, *stage_work(build, checkpoint, checkpoint.schedule, name, config, batches, 16, 2)


def steps(module, loss, optimizer):
    for number in (0, 16):  # both imitate, the second one beside the optimizer's state
        loss(module, number)[0].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize("name", STAGES)
def test_tensors_without_contents_take_what_real_ones_take(build, name):
    counted = count_stage(build, name, CONFIG, 64, imitate_every=16, teacher_steps=2)
    with MemoryCounter() as counter:
        checkpoint, module, loss, used = work(build, name)
        drop(checkpoint, used)
        average = [torch.empty_like(value) for value in module.state_dict().values()]
        module.train()
        weights = [weight for weight in module.parameters() if weight.requires_grad]
        counter.peak = counter.now
        steps(module, loss, make_optimizer("adamw", weights, 1e-3, 0.01))
    assert counted.peak == pytest.approx(counter.peak, rel=0.02) and average
    size = sum(weight.numel() * 4 for weight in weights)
    assert counted.gradients == size and counted.weights >= size
    assert counted.optimizer == pytest.approx(2 * size, rel=0.01)  # and a counter per weight
    assert counted.activations > 0


def test_muon_keeps_one_moment_of_a_matrix(build):
    adamw, muon = (count_stage(build, "student", replace(CONFIG, optimizer=name), 64) for name in ("adamw", "muon"))
    assert 0.4 * adamw.optimizer < muon.optimizer < 0.6 * adamw.optimizer


@pytest.mark.parametrize("name", ["reference", "one_step", "student"])
def test_computing_activations_twice_saves_memory_and_changes_no_gradient(build, name):
    plain, thrifty = (
        count_stage(build, name, replace(CONFIG, batch=8, gradient_checkpointing=on), 64) for on in (False, True)
    )
    assert thrifty.activations < 0.8 * plain.activations
    found = []
    for on in (False, True):
        torch.manual_seed(0)
        checkpoint, module, loss, _ = work(build, name)
        module.train()
        with recomputing(on, module, checkpoint.vae):
            loss(module, 0)[0].backward()
        found.append({key: weight.grad for key, weight in module.named_parameters() if weight.grad is not None})
        assert not any(getattr(part, "gradient_checkpointing", False) for part in module.modules())
    assert found[0].keys() == found[1].keys() and found[0]
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


def test_averages_on_the_cpu_and_other_layouts_train_to_the_same_weights(tmp_path):
    def loss(module, step):
        x = torch.full((2, 4, 8, 8), float(step + 1))
        value = (module(x) - 1).square().mean()
        return value, {"loss": value.detach()}

    ends = []
    for name, more in (("plain", {}), ("cpu", {"average_on_cpu": True}), ("last", {"channels_last": True})):
        torch.manual_seed(0)
        module = torch.nn.Conv2d(4, 4, 3)
        train_stage(name, module, loss, StageConfig(4, 1, 0.05, warmup=1, **more), tmp_path / name, False)
        ends.append(module.weight.detach().clone())
    assert torch.equal(ends[0], ends[1]) and torch.allclose(ends[0], ends[2], atol=1e-5)


def test_a_plan_names_the_cheapest_changes_that_fit_and_they_do(build):
    config = short_run(student=replace(CONFIG, batch=4))
    (whole,) = plan(build, {"student": config.student}, 64)
    assert whole.fits(None) and whole.changes == ()
    limit = 0.7 * whole.memory.peak
    (fitted,) = plan(build, {"student": config.student}, 64, limit)
    assert not fitted.fits(limit) and fitted.fitted.peak <= limit
    told = [change.removeprefix("--set ") for change in fitted.changes]
    after = count_stage(build, "student", stages_of(with_settings(config, told))["student"], 64)
    assert after == fitted.fitted
    assert "--set student.gradient_checkpointing=true" in said([fitted], limit)[0]
    thrifty = replace(CONFIG, batch=1, optimizer="muon", gradient_checkpointing=True, average_on_cpu=True, lora=2)
    (nothing_left,) = plan(build, {"student": thrifty}, 64, 1000.0)
    assert nothing_left.fitted is None and nothing_left.changes == ()
    (hopeless,) = plan(build, {"student": replace(CONFIG, batch=1, optimizer="muon")}, 64, 1000.0)
    assert hopeless.fitted is None and "does not fit" in said([hopeless], 1000.0)[0]


def test_thriftier_settings_train_on_as_many_pictures():
    found = list(thriftier(replace(CONFIG, batch=4, accumulate=3)))
    assert all(each.batch * each.accumulate == 12 for each in found)
    assert found[-2].optimizer == "adamw8bit" and found[-2].lora == 0 and found[-2].batch == 1
    assert found[-1].optimizer == "adamw" and found[-1].lora == 16 and found[-1].batch == 1
    assert list(differences("student", CONFIG, CONFIG)) == []


def test_the_disk_of_a_stage_is_what_its_folder_holds(tmp_path):
    torch.manual_seed(0)
    line, size = torch.nn.Linear(200, 200), 4 * 200 * 201

    def loss(module, number):
        value = module(torch.ones(2, 200)).square().mean()
        return value, {"mse": value.detach()}

    train_stage("line", line, loss, StageConfig(4, 2, 0.01, save_every=1), tmp_path, False)
    held = sum(path.stat().st_size for path in (tmp_path / "state").rglob("*") if path.is_file())
    counted = StageMemory(size, 0, size, 2 * size, size, 9 * size).disk
    assert held * 3 / 2 + 2 * size == pytest.approx(
        counted, rel=0.05
    )  # two states are kept, a third is written beside them


def test_a_dry_run_prints_what_every_stage_needs_and_begins_nothing(tmp_path, raw_tokenizer, monkeypatch, capsys):
    write_directory(tmp_path / "sd", raw_tokenizer, style="1.5")
    monkeypatch.chdir(tmp_path)
    words = "train --init sd --data scenes:crops --size 64 --dry-run --memory 80 --step-seconds 2 -o out"
    monkeypatch.setattr("sys.argv", ["digseg", *words.split()])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert not (tmp_path / "out").exists()
    printed = " ".join(capsys.readouterr().out.split())
    assert all(word in printed for word in ("reference", "one_step", "student", "activations", "disk", "11.1 h"))
    assert "student fits 80 GB" in printed


def test_the_outline_of_a_directory_has_the_sizes_of_its_weights(tmp_path, raw_tokenizer, nano_folder):
    from digseg_engine.training.recipes.finetune import load_start

    for folder in (write_directory(tmp_path / "sd", raw_tokenizer, style="1.5"), nano_folder):
        held, drawn = load_start(folder)[0], outline(str(folder))
        assert drawn.config == held.config
        for part in ("vae", "text_encoder", "reference", "student"):
            shapes = [{k: v.shape for k, v in getattr(c, part).state_dict().items()} for c in (held, drawn)]
            assert shapes[0] == shapes[1], part


def test_pictures_and_epochs_of_a_folder_are_counted(nano_folder, tmp_path):
    from dataset_trees import TREES

    TREES["folder"](tmp_path / "data")
    plans, pictures = plan_finetune(str(nano_folder), short_run(student=CONFIG), str(tmp_path / "data"))
    assert [each.name for each in plans] == ["student"] and pictures and pictures > 0


@pytest.mark.parametrize(
    ("change", "heeding"),
    [
        ("reference.prompts=4", "student, presence"),
        ("reference.validate_every=5", "one_step, student"),
        ("one_step.prompts=2", "student, presence"),
    ],
)
def test_a_setting_that_a_stage_does_not_heed_is_refused(change, heeding):
    settings = short_run(reference=CONFIG, one_step=CONFIG, student=CONFIG, presence=CONFIG)
    with pytest.raises(
        UsageError, match=f"--set '{change}' has no effect on this stage; .* is heeded by {heeding} alone"
    ):
        with_settings(settings, [change])
    assert with_settings(settings, ["student.prompts=4", "one_step.validate_every=5"]).student.prompts == 4
    assert with_settings(settings, ["presence.prompts=4"]).presence.prompts == 4


def test_optimizers_are_named_and_a_missing_package_is_said():
    weights = [torch.nn.Parameter(torch.ones(2, 2))]
    with pytest.raises(UsageError, match="adamw, adamw8bit, muon, got 'sgd'"):
        make_optimizer("sgd", weights, 0.1, 0.0)
    assert resolve_precision("auto") == ("bf16" if torch.cuda.is_available() else "no")
    assert resolve_precision("fp16") == "fp16"


def test_a_saved_state_copies_only_tensors_that_share_memory(tmp_path):
    base = torch.arange(6.0).reshape(2, 3)
    tensors = {"a": base, "b": base, "row": base[1], "turned": base.T}
    _save_tensors(tmp_path / "x.safetensors", tensors)
    found = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
