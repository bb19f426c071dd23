"""Adapters: nothing changes before they train, what does not train keeps its bits, and what is kept is an ordinary network."""

import sys
from dataclasses import replace

import pytest
import torch
from nano_models import build_nano
from programs import run_program
from safetensors.torch import load_file
from small_stage import short_run

from digseg_engine.commands.main import dispatch
from digseg_engine.errors import TrainingError, UsageError
from digseg_engine.model.pretrained import load_checkpoint
from digseg_engine.training import state as states
from digseg_engine.training.averaging import Averaged
from digseg_engine.training.loop import StageConfig, train_stage
from digseg_engine.training.lora import Adapters
from digseg_engine.training.memory import count_stage
from digseg_engine.training.objectives.one_step import OneStepLoss
from digseg_engine.training.objectives.pairs import PairSource
from digseg_engine.training.planner import plan, said
from digseg_engine.training.recipes.finetune import finetune
from digseg_engine.worlds.pool import SceneBatches, build_pool
from digseg_engine.worlds.sources import cache_latents

STAGE = StageConfig(
    6, 2, 2e-2, prompts=3, warmup=1, ema=0.5, weight_decay=0.01, clip=1.0, save_every=2, precision="no", lora=2
)
MATRICES = ("to_q", "to_k", "to_v", "to_out")


class Killed(BaseException):
    """Stands for a kill: nothing of ours catches it."""


@pytest.fixture
def start(nano_preset, raw_tokenizer):
    """A nano checkpoint whose reference is about to be trained."""
    checkpoint = build_nano(nano_preset, raw_tokenizer)
    checkpoint.reference.requires_grad_(True)
    return checkpoint


@pytest.fixture
def loss(start, tmp_path):
    pools = {"crops": build_pool("crops", 6, 64, tmp_path, workers=1)}
    cache_latents(start.vae, pools, tmp_path)
    batches = SceneBatches(pools, {"crops": 1.0}, seed=0)
    return OneStepLoss(PairSource(batches, start.vae, start.text_encoder, start.tokenizer, STAGE), start.schedule)


@torch.no_grad()
def answer(reference):
    random = torch.Generator().manual_seed(5)
    latents, text = torch.randn(2, 8, 8, 8, generator=random), torch.randn(2, 4, 24, generator=random)
    return reference.eval()(latents, torch.tensor([999, 400]), text)


def copied(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def is_adapted(name):
    return ".attentions." in name and name.endswith("weight") and any(f".{matrix}." in name for matrix in MATRICES)


def trains_whole(name):
    return name.startswith(("unet.conv_in.", "pathway."))


def test_before_training_every_answer_is_the_same_bits_and_merging_gives_the_network_back(start):
    reference, before, weights = start.reference, answer(start.reference), copied(start.reference)
    adapters = Adapters(reference, 4)
    assert torch.equal(answer(reference), before)
    training = [name for name, weight in reference.named_parameters() if weight.requires_grad]
    added = [name for name in training if ".lora_" in name]
    whole = [name for name in training if name not in added]
    assert whole == [name for name in weights if trains_whole(name)]
    assert len(added) == 2 * sum(map(is_adapted, weights)) > 0
    adapters.merge()
    after = reference.state_dict()
    assert list(after) == list(weights) and all(torch.equal(after[name], weights[name]) for name in weights)
    assert all(weight.requires_grad for weight in reference.parameters()) and not hasattr(reference.unet, "peft_config")


def test_merged_weights_answer_as_the_adapters_did(start):
    reference, before = start.reference, answer(start.reference)
    adapters = Adapters(reference, 3)
    for name, weight in reference.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    apart = answer(reference)
    adapters.merge()
    assert (answer(reference) - apart).abs().max() < 1e-5
    assert (apart - before).abs().max() > 1e-2


def test_training_moves_projections_by_their_rank_and_leaves_the_rest_as_it_was(start, loss, tmp_path):
    reference, weights = start.reference, copied(start.reference)
    train_stage("one_step", reference, loss, STAGE, tmp_path / "run", False)
    after = reference.state_dict()
    assert list(after) == list(weights)
    for name, before in weights.items():
        moved = not torch.equal(after[name], before)
        assert moved == (is_adapted(name) or (trains_whole(name) and moved)), name
        if is_adapted(name):
            difference = after[name].double() - before.double()
            values = torch.linalg.svdvals(difference)
            assert values[1] > 1e-4 > 10 * values[2:].max() if len(values) > 2 else values[0] > 1e-4
    for part in ("unet.conv_in.weight", "pathway.injections.0.gate"):
        assert not torch.equal(after[part], weights[part])


def test_a_killed_run_ends_with_the_bits_of_an_undisturbed_one(nano_preset, raw_tokenizer, loss, tmp_path):
    def trained(folder, stop_at=-1, resume=False, **changes):
        def killed(model, number):
            if number == stop_at:
                raise Killed
            return loss(model, number)

        reference = build_nano(nano_preset, raw_tokenizer).reference.requires_grad_(True)
        for name, value in changes.items():
            reference.get_parameter(name.replace("__", ".")).data.fill_(value)
        train_stage("one_step", reference, killed, STAGE, tmp_path / folder, resume)
        return reference.state_dict()

    whole = trained("whole")
    with pytest.raises(Killed):
        trained("cut", stop_at=5)
    state = states.newest_state(tmp_path / "cut" / "state")
    with pytest.raises(TrainingError, match="was trained on other weights than the run begins with"):
        trained("cut", resume=True, unet__conv_out__bias=1.0)
    resumed = trained("cut", resume=True)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert state.name == "step-00000004"
    kept = {name: load_file(state / f"{name}.safetensors") for name in states.TENSORS}
    assert not any("base_layer" in name or "resnets" in name for name in kept["model"])
    assert {name.removeprefix("module.") for name in kept["average"]} == {*kept["model"], "n_averaged"}
    assert len(kept["optimizer"]) == 3 * len(kept["model"])  # two moments and a count


def test_the_average_shares_what_does_not_train(start):
    Adapters(start.reference, 2)
    average = Averaged(start.reference, 0.5)
    mine = dict(average.module.named_parameters())
    for name, weight in start.reference.named_parameters():
        assert (mine[name] is weight) != weight.requires_grad, name
    with torch.no_grad():
        start.reference.unet.conv_in.bias.fill_(1.0)
        average.update_parameters(start.reference)
        start.reference.unet.conv_in.bias.fill_(3.0)
        average.update_parameters(start.reference)
    assert torch.equal(average.module.unet.conv_in.bias, torch.full((8,), 2.0))


def test_a_stage_without_a_unet_is_refused(tmp_path):
    with pytest.raises(UsageError, match="trains none; set lora to 0 in it"):
        train_stage("line", torch.nn.Linear(2, 2), None, STAGE, tmp_path, False)
    with pytest.raises(UsageError, match="must be 1 or more, or 0 for none, got -2"):
        Adapters(torch.nn.Linear(2, 2), -2)


@pytest.mark.slow
def test_a_whole_run_leaves_a_checkpoint_that_opens_without_peft(nano_folder, tmp_path):
    stage = replace(STAGE, steps=4, validate_every=2, validate_pictures=2, average_on_cpu=True)
    settings = short_run(reference=stage, one_step=stage, student=stage, imitate_every=2)
    written = finetune(str(nano_folder), tmp_path / "run", settings, data="scenes:crops")
    start, end = load_checkpoint(nano_folder), load_checkpoint(written)
    for part in ("reference", "student"):
        before, after = (getattr(checkpoint, part).state_dict() for checkpoint in (start, end))
        assert before.keys() == after.keys()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert any(map(is_adapted, changed))
        still = {name for name in before if name.startswith("unet.") and not (is_adapted(name) or trains_whole(name))}
        assert still and not changed & still
    best = load_file(tmp_path / "run" / "student" / "best.safetensors")
    assert any("lora_A" in name for name in best) and not any("base_layer" in name for name in best)
    opened = "import sys; sys.modules['peft'] = None; from digseg_engine.model.pretrained import load_checkpoint as load; load"
    done = run_program([sys.executable, "-c", f"{opened}(__import__('pathlib').Path(sys.argv[1]))", str(written)])
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("name", ["reference", "one_step", "few_step", "student"])
def test_the_planner_counts_adapters_as_what_trains(nano_preset, raw_tokenizer, name):
    def build():
        return build_nano(nano_preset, raw_tokenizer)

    config = replace(STAGE, optimizer="adamw")
    whole, few = (count_stage(build, name, replace(config, lora=rank), 64) for rank in (0, 1))
    checkpoint = build()
    module = checkpoint.student if name == "student" else checkpoint.reference
    module.requires_grad_(True)
    Adapters(module, 1)
    trained = sum(weight.numel() * 4 for weight in module.parameters() if weight.requires_grad)
    assert few.gradients == trained < 0.7 * whole.gradients
    assert few.optimizer == pytest.approx(2 * trained, rel=0.02)
    buffers = sum(buffer.numel() * 4 for buffer in module.buffers())
    assert few.average == trained + buffers and few.weights > whole.weights
    assert few.peak < whole.peak


def test_a_plan_advises_adapters_where_nothing_cheaper_fits(nano_preset, raw_tokenizer):
    def build():
        return build_nano(nano_preset, raw_tokenizer)

    config = replace(STAGE, batch=1, lora=0, gradient_checkpointing=True, average_on_cpu=True, optimizer="muon")
    with_adapters = count_stage(build, "reference", replace(config, lora=16), 64).peak
    (found,) = plan(build, {"reference": config}, 64, float(with_adapters))
    assert found.changes == ("--set reference.lora=16",) and found.fitted.peak == with_adapters
    assert "--set reference.lora=16" in said([found], with_adapters)[0]


@pytest.mark.parametrize("how", [["--lora", "4"], ["--set", "student.lora=4"]])
def test_without_peft_one_line_says_what_to_install(nano_folder, tmp_path, how):
    hide = "import sys; sys.modules['peft'] = None; from digseg_engine.cli import main; main()"
    words = ["train", "--init", str(nano_folder), "--data", "scenes", "-o", str(tmp_path / "out"), *how]
    done = run_program([sys.executable, "-c", hide, *words])
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 1 and "training adapters (lora) needs the package peft" in line and "[lora]" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [["--init", "digseg-tiny", "--lora", "0"], ["--lora", "4"]])
def test_adapters_of_no_rank_and_from_nothing_are_refused(tmp_path, words):
    with pytest.raises(UsageError, match="--lora"):
        dispatch(["train", *words, "-o", str(tmp_path / "out")])
