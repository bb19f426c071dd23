"""Training: batches are pure functions, resume is exact, the whole run works end to end at a tiny scale."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_stage import Line, fit

from digseg_engine.errors import TrainingError, UsageError
from digseg_engine.training.loop import StageConfig, train_stage
from digseg_engine.training.objectives.losses import dice_loss, mask_loss, shrink
from digseg_engine.training.recipe_files import recipe_settings
from digseg_engine.training.recipes.tiny import TrainConfig
from digseg_engine.training.run import with_settings
from digseg_engine.worlds.pool import NAMES, SceneBatches, build_pool
from digseg_engine.worlds.scenes import UNSEEN_PAIRS, scene

TINY = recipe_settings("tiny", TrainConfig)


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
    cache = tmp_path_factory.mktemp("pools")
    return {domain: build_pool(domain, 12, 32, cache, workers=1) for domain in ("objects", "aerial")}


def test_pool_masks_equal_the_scenes_own(pools):
    names = ["field", "road", "trees", "red circle"]
    got = pools["aerial"].masks(np.array([3, 5]), names)
    for row, seed in zip(got, (3, 5)):
        one = scene(seed, "aerial", 32)
        for mask, name in zip(row, names):
            assert np.array_equal(mask.numpy() > 0, one.mask(name)), name


def test_pool_comes_back_from_its_cache(tmp_path):
    first = build_pool("crops", 4, 32, tmp_path, workers=1)
    (file,) = tmp_path.glob("*.npz")
    stamp = file.stat().st_mtime_ns
    again = build_pool("crops", 4, 32, tmp_path, workers=1)
    assert file.stat().st_mtime_ns == stamp
    assert np.array_equal(first.images, again.images) and np.array_equal(first.members, again.members)


def test_batches_are_pure_functions_of_the_step(pools):
    batches = SceneBatches(pools, {"objects": 0.5, "aerial": 0.5}, seed=1)
    a, b, c = batches.batch(4, 3, 7), batches.batch(4, 3, 7), batches.batch(5, 3, 7)
    assert torch.equal(a.images, b.images) and a.queries == b.queries and torch.equal(a.masks, b.masks)
    assert not torch.equal(a.images, c.images)
    assert a.images.shape == (3, 3, 32, 32) and a.masks.shape == (3, 7, 32, 32)


def test_batches_hold_present_and_absent_prompts_but_never_unseen_pairs(pools):
    batches = SceneBatches(pools, {"objects": 1.0, "aerial": 0.3}, seed=0)
    asked = [batches.batch(step, 4, 16) for step in range(60)]
    names = {query.name for batch in asked for query in batch.queries}
    assert names <= set(NAMES) - set(UNSEEN_PAIRS)
    present = torch.cat([(batch.masks.sum((-2, -1)) > 0).float().mean(0) for batch in asked])
    assert (present > 0).float().mean() > 0.5 and (present == 0).float().mean() > 0.05


def test_losses_reward_the_right_mask():
    target = torch.zeros(1, 2, 8, 8)
    target[0, 0, 2:5, 2:5] = 1
    right, wrong = (target * 2 - 1) * 12, (1 - target * 2) * 12
    for loss in (sum(mask_loss(right, target)), dice_loss(right, target).max()):
        assert loss < 1e-2
    assert sum(mask_loss(wrong, target)) > 5
    assert torch.equal(shrink(target, torch.Size((4, 4))).sum() * 4, target.sum())


def test_every_stage_leaves_a_curve_and_resume_with_another_configuration_is_refused(tmp_path):
    fit(tmp_path)
    assert (tmp_path / "curve.png").stat().st_size > 5000
    with pytest.raises(TrainingError, match=r"learning_rate differ.*--override"):
        fit(tmp_path, resume=True, learning_rate=0.01)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    def loss(model, step):
        return model(torch.ones(1, 3)).sum() * float("nan"), {"x": 0.0}

    with pytest.raises(TrainingError, match=r"loss is nan.*step 1.*learning rate"):
        train_stage("line", Line(), loss, StageConfig(3, 1, 0.1), tmp_path, resume=False)


@pytest.mark.slow
def test_the_whole_run_trains_saves_and_loads(tmp_path, nano_preset, monkeypatch):
    from digseg_engine.model import config
    from digseg_engine.model.pretrained import load_checkpoint
    from digseg_engine.model.quality import read_quality
    from digseg_engine.training.recipes import tiny as module

    monkeypatch.setitem(config.PRESETS, "tiny", nano_preset)
    short = StageConfig(3, 8, 1e-3, prompts=6, warmup=1)
    settings = module.TrainConfig(
        scenes=32,
        size=64,
        imitate_every=16,
        quality_pictures=2,
        autoencoder=short,
        denoiser=short,
        backbone=short,
        text=short,
        reference=short,
        student=short,
    )
    folder = module.train("tiny", tmp_path / "run", settings)
    loaded = load_checkpoint(folder)
    assert loaded.vae.config.scaling_factor != 0.18215
    for stage in ("autoencoder", "denoiser", "backbone", "text", "reference", "student"):
        assert (tmp_path / "run" / stage / "curve.png").is_file(), stage
    figures = read_quality(folder)
    assert figures.measured["on"] == "test scenes" and figures.measured["pictures"] == 1  # of 120 that were trained on
    made = json.loads((folder / "training" / "made.json").read_text())
    assert set(made["seconds"]) == {"autoencoder", "denoiser", "backbone", "text", "reference", "student", "total"}
    assert (folder / "training" / "student.csv").read_text().startswith("step,seconds,bce,dice")
    assert json.loads((tmp_path / "run" / "train.json").read_text())["seed"] == 0
    stamp = (folder / "student" / "model.safetensors").read_bytes()
    assert (
        module.train("tiny", tmp_path / "run", settings, resume=True) / "student" / "model.safetensors"
    ).read_bytes() == stamp
    with pytest.raises(UsageError, match="not empty"):
        module.train("tiny", tmp_path / "run", settings)


@pytest.mark.slow
def test_a_run_may_denoise_pictures_in_place_of_dense_labels_but_not_leave_out_both(tmp_path, nano_preset, monkeypatch):
    from digseg_engine.model import config
    from digseg_engine.training.recipes import tiny as module
    from digseg_engine.training.run import scaled

    monkeypatch.setitem(config.PRESETS, "tiny", nano_preset)
    shipped = recipe_settings("tiny-denoising", module.TrainConfig)
    assert shipped.backbone is None and shipped.denoiser is not None
    settings = replace(scaled(shipped, 0.0005), size=64, scenes=32, presence=None, quality_pictures=0)
    folder = module.train("tiny", tmp_path / "run", settings, data="scenes:crops")
    assert set(json.loads((folder / "training" / "made.json").read_text())["seconds"]) == {
        "autoencoder", "denoiser", "text", "reference", "student", "total",
    }  # fmt: skip
    with pytest.raises(UsageError, match=r"give the recipe \[denoiser\], \[backbone\] or both"):
        replace(settings, denoiser=None)


def test_presets_that_need_pretrained_weights_are_refused(tmp_path):
    from digseg_engine.training.recipes.tiny import train
    from digseg_engine.training.run import scaled

    with pytest.raises(UsageError, match="pretrained"):
        train("sd21", tmp_path / "x")
    with pytest.raises(UsageError, match="above 0"):
        scaled(TINY, 0)


def test_settings_change_by_name_and_wrong_ones_are_refused():
    changed = with_settings(TINY, ["student.steps=7", "scenes=9", "student.compile=false", "text.optimizer=adamw"])
    assert (changed.student.steps, changed.scenes, changed.student.compile, changed.text.optimizer) == (
        7,
        9,
        False,
        "adamw",
    )
    assert changed.backbone == TINY.backbone
    for wrong, word in (("student.step=7", "learning_rate"), ("teacher.steps=7", "student.steps"), ("scenes=many", "int"),
                        ("student.compile=maybe", "true or false")):  # fmt: skip
        with pytest.raises(UsageError, match=word):
            with_settings(TINY, [wrong])
