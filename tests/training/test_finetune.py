"""From a Stable Diffusion directory to masks: train 2 steps, distil 2 steps, export, segment; and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_stage import short_run

from digseg_engine.errors import UsageError
from digseg_engine.model.pretrained import load_checkpoint
from digseg_engine.training.loop import StageConfig
from digseg_engine.training.objectives.denoising import DenoisingLoss
from digseg_engine.training.objectives.few_step import FewStepLoss
from digseg_engine.training.objectives.one_step import OneStepLoss
from digseg_engine.training.objectives.pairs import PairSource
from digseg_engine.training.recipe_files import recipe_settings
from digseg_engine.training.recipes.distill import DistillConfig, distill
from digseg_engine.training.recipes.finetune import finetune
from digseg_engine.worlds.pool import SceneBatches, build_pool
from digseg_engine.worlds.sources import cache_latents, parse_domains
from tests.model.sd_directories import write_directory

SHORT = StageConfig(2, 2, 1e-4, prompts=3, warmup=1)


@pytest.fixture
def pairs(nano, tmp_path):
    pools = {"crops": build_pool("crops", 6, 64, tmp_path, workers=1)}
    cache_latents(nano.vae, pools, tmp_path)
    batches = SceneBatches(pools, {"crops": 1.0}, seed=0)
    return PairSource(batches, nano.vae, nano.text_encoder, nano.tokenizer, replace(SHORT, batch=4))


def test_both_losses_of_the_reference_reach_every_weight_of_it(nano, pairs):
    schedule = nano.schedule
    nano.reference.requires_grad_(True)
    for injection in nano.reference.pathway.injections:
        torch.nn.init.constant_(injection.gate, 0.5)
    for loss in (DenoisingLoss(pairs, schedule), OneStepLoss(pairs, schedule)):
        nano.reference.zero_grad()
        value, parts = loss(nano.reference, 0)
        value.backward()
        silent = [n for n, p in nano.reference.named_parameters() if p.grad is None or not p.grad.any()]
        assert value.isfinite() and all(np.isfinite(v) for v in parts.values())
        assert not silent, (type(loss).__name__, silent)


def test_the_right_one_step_latent_costs_less_than_one_that_is_three_apart(nano, pairs):
    drawn = pairs.draw(0, torch.Generator().manual_seed(0), torch.device("cpu"))

    class Oracle(torch.nn.Module):
        def __init__(self, answer):
            super().__init__()
            self.answer = torch.nn.Parameter(answer)

        def forward(self, latents, t, text, mask):
            return self.answer

    loss = OneStepLoss(pairs, nano.schedule, latent_weight=1.0)
    right, wrong = (
        float(loss(Oracle(v), 0)[0]) for v in (-drawn.clean, -drawn.clean + 3)
    )  # at zero terminal SNR the clean latent is -v
    assert right < wrong


def test_few_step_distillation_of_an_untrained_teacher_is_finite_and_of_the_latents_shape(nano, pairs):
    loss = FewStepLoss(pairs, nano.reference, nano.schedule, teacher_steps=1, grid=(1,))
    with torch.no_grad():
        drawn = pairs.draw(0, torch.Generator().manual_seed(0), torch.device("cpu"))
        assert drawn.clean.shape == drawn.z.shape
    values = [float(loss(nano.reference, step)[0].detach()) for step in range(3)]
    assert all(np.isfinite(values))


@pytest.mark.slow
@pytest.mark.parametrize("style", [pytest.param("1.5", marks=pytest.mark.long), "2.1"])
def test_stable_diffusion_to_masks(tmp_path, raw_tokenizer, style):
    from digseg_engine.runtime.engine import Engine
    from digseg_export.publish import export_bundle

    source = write_directory(tmp_path / "sd", raw_tokenizer, style=style)
    settings = short_run(scenes=8, size=128, reference=replace(SHORT, accumulate=2), one_step=SHORT, student=SHORT)
    trained = finetune(str(source), tmp_path / "run", settings, data="scenes:crops")
    for stage in ("reference", "one_step", "student"):
        assert (tmp_path / "run" / stage / "curve.png").is_file()
    config = DistillConfig(scenes=8, teacher_steps=3, grid=(1, 2), few_step=SHORT, student=SHORT, report_scenes=1)
    distilled = distill(str(trained), tmp_path / "distilled", config, data="scenes:crops")
    rows = json.loads((distilled / "distill.json").read_text())["rows"]
    assert [(row["model"], row["steps"]) for row in rows] == [
        ("teacher", 3), ("teacher", 1), ("teacher", 2), ("distilled", 1), ("distilled", 2), ("student", 1)
    ]  # fmt: skip
    before, after = load_checkpoint(trained), load_checkpoint(distilled)
    assert after.config.image_size == 128
    assert before.config.prediction == ("epsilon" if style == "1.5" else "v_prediction")
    assert not torch.equal(before.reference.unet.conv_in.weight, after.reference.unet.conv_in.weight)
    export_bundle(distilled, "fp32", tmp_path / "bundle")
    engine = Engine.load(tmp_path / "bundle")
    result = engine.segment(np.zeros((100, 80, 3), np.uint8), ["soil", "weed"])
    assert result.masks.shape == (2, 100, 80)


def test_a_tutored_run_changes_the_students_weights_and_adds_no_others(tmp_path, nano_folder):
    settings = short_run(scenes=8, size=64, dense=True, student=replace(SHORT, precision="bf16"))
    folder = finetune(str(nano_folder), tmp_path / "run", settings, data="scenes:crops")
    before, after = load_checkpoint(nano_folder).student.state_dict(), load_checkpoint(folder).student.state_dict()
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert "dense" in (folder / "training" / "student.csv").read_text().splitlines()[0]


def test_a_trained_checkpoint_has_nothing_that_was_found_for_other_weights(tmp_path, nano_folder):
    stated = json.loads((nano_folder / "digseg.json").read_text())
    found = {"presence_threshold": -2.5, "image_size_max": 96, "licence": "MIT"}
    (nano_folder / "digseg.json").write_text(json.dumps({**stated, **found}))
    before = load_checkpoint(nano_folder).config
    assert {name: getattr(before, name) for name in found} == found
    folder = finetune(str(nano_folder), tmp_path / "run", short_run(scenes=8, size=64), data="scenes:crops")
    after = load_checkpoint(folder).config
    assert {name: getattr(after, name) for name in found} == dict.fromkeys(found)


def test_a_run_that_teaches_presence_beside_masks_adds_the_readout_and_learns_it_in_one_stage(tmp_path, nano_folder):
    settings = short_run(scenes=8, size=64, dense=True, presence_beside=True)
    folder = finetune(str(nano_folder), tmp_path / "run", settings, data=["scenes:crops@32", "scenes:crops"])
    after = load_checkpoint(folder)
    assert after.config.student.presence_width and after.config.image_size == 64
    assert "presence_missed" in (folder / "training" / "student.csv").read_text().splitlines()[0]


def test_unusable_settings_are_refused_before_any_work(tmp_path, nano_folder, raw_tokenizer):
    with pytest.raises(UsageError, match="multiple of 8"):
        finetune(str(nano_folder), tmp_path / "a", short_run(size=60))
    sd = write_directory(tmp_path / "sd", raw_tokenizer)
    with pytest.raises(UsageError, match=r"needs a DiGSeg checkpoint .* such as sd15"):
        finetune(str(sd), tmp_path / "b", short_run())
    with pytest.raises(UsageError, match=r"no \[student\]"):
        finetune(str(nano_folder), tmp_path / "b", short_run(student=None, presence=SHORT, presence_beside=True))
    with pytest.raises(UsageError, match="multiple of 8"):
        finetune(str(nano_folder), tmp_path / "b", short_run(size=64), data="scenes@20")
    with pytest.raises(UsageError, match="after @ comes the side"):
        finetune(str(nano_folder), tmp_path / "b", short_run(size=64), data="scenes@small")
    with pytest.raises(UsageError, match="generated scenes only"):
        finetune(str(nano_folder), tmp_path / "b", short_run(dense=True), data=str(tmp_path / "own"))
    with pytest.raises(UsageError, match="no trained reference"):
        distill(str(sd), tmp_path / "c")
    with pytest.raises(UsageError, match="below the teacher's 4 steps"):
        replace(recipe_settings("distill-tiny", DistillConfig), teacher_steps=4)
    with pytest.raises(UsageError, match="unknown scene domain 'moon'"):
        parse_domains("scenes:crops,moon")
    assert not (tmp_path / "b").exists() and not (tmp_path / "c").exists()
