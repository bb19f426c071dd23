"""Networks that are trained learn: four pictures are overfitted, averages are what is written, a start is handed on."""

from dataclasses import replace

import pytest
import torch
from nano_models import build_nano
from safetensors.torch import load_file
from small_stage import short_run
from torch import nn

from digseg_engine.data.batch import Batch, Planes
from digseg_engine.data.query import Query
from digseg_engine.data.wordings import encode_text
from digseg_engine.model.autoencoder import decode_mask, encode_image
from digseg_engine.model.config import TINY
from digseg_engine.model.pretrained import load_checkpoint
from digseg_engine.training.loop import StageConfig, train_stage
from digseg_engine.training.objectives.one_step import OneStepLoss
from digseg_engine.training.objectives.pairs import PairSource
from digseg_engine.training.objectives.student import DistillationLoss
from digseg_engine.training.recipes.finetune import finetune
from digseg_engine.training.run import Run
from tests.model.sd_directories import write_directory


class One(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.0))

    def forward(self):
        return self.w


@pytest.mark.parametrize("ema", [0.0, 0.6, 0.9])
def test_the_averaged_weight_follows_its_formula_and_is_what_is_written(tmp_path, ema):
    """AdamW on a loss whose gradient is always 1 moves the weight by the rate, whatever its history."""
    config = StageConfig(8, 1, 0.1, warmup=1, weight_decay=0.0, ema=ema, optimizer="adamw", clip=100.0)
    model, track = One(), []

    def loss(module, step):
        track.append(float(module().detach()))
        return module() * 1.0, {"w": track[-1]}

    Run(tmp_path, False, 0).stage("one", model, loss, config)
    steps = [*track[1:], float(load_file(tmp_path / "one" / "state" / "step-00000008" / "model.safetensors")["w"])]
    expected = steps[0]  # the average begins with the first trained weight
    for value in steps[1:]:
        expected = ema * expected + (1 - ema) * value
    assert float(model.w) == pytest.approx(expected, abs=1e-6)
    assert float(load_file(tmp_path / "one" / "weights.safetensors")["w"]) == pytest.approx(expected, abs=1e-6)
    assert steps[-1] < -0.2 and (ema == 0.0) == (expected == pytest.approx(steps[-1], abs=1e-6))


class FourPictures:
    """Four fixed pictures of 64 px: a bright square, a dark bar and the ground between them, each a prompt; no moon."""

    names, seed = ("square", "bar", "ground", "moon"), 0

    def __init__(self, vae):
        random = torch.Generator().manual_seed(0)
        ids = torch.zeros(4, 64, 64, dtype=torch.long)
        for i, (top, left) in enumerate([(4, 4), (8, 36), (36, 8), (32, 32)]):
            ids[i, top : top + 24, left : left + 24] = 1
            ids[i, 60 - top - 8 : 60 - top, 8:56][ids[i, 60 - top - 8 : 60 - top, 8:56] == 0] = 2
        colours = torch.tensor([[0.0, 0.2, 0.0], [0.8, 0.6, 0.1], [-0.8, -0.7, 0.3]])
        self.images = colours[ids].permute(0, 3, 1, 2) + 0.05 * torch.randn(4, 3, 64, 64, generator=random)
        self.masks = torch.stack([ids == 1, ids == 2, ids == 0, ids == 3], dim=1).float()
        with torch.no_grad():
            self.latents = encode_image(vae, self.images)

    def batch(self, step, size, prompts):
        chosen = torch.arange(size) % 4
        kept = slice(0, prompts)
        queries = [Query(name, name) for name in self.names[kept]]
        return Batch(self.images[chosen], self.latents[chosen], queries, Planes(self.masks[chosen][:, kept]))

    def phrase(self, rng, name):
        return Query(name, name)


@pytest.fixture
def learner(nano_preset, raw_tokenizer):
    """The nano model with the tiny autoencoder, which as drawn is a working codec of masks."""
    return build_nano(replace(nano_preset, vae=TINY.vae), raw_tokenizer)


def iou(logits, masks):
    found, truth = logits > 0, masks > 0.5
    return float(((found & truth).sum((-2, -1)) / (found | truth).sum((-2, -1)).clamp(min=1)).mean())


def test_sixty_steps_overfit_four_pictures_with_the_student(learner, tmp_path):
    c, data = learner, FourPictures(learner.vae)
    settings = StageConfig(60, 4, 2e-2, prompts=4, warmup=5, ema=0.8, optimizer="muon")
    loss = DistillationLoss(data, c.vae, c.text_encoder, c.tokenizer, c.reference, c.schedule, settings)
    train_stage("student", c.student.requires_grad_(True), loss, settings, tmp_path, False)
    text = c.student.fold_text(*encode_text(c.text_encoder, c.tokenizer, list(data.names)))
    with torch.no_grad():
        logits = torch.nn.functional.interpolate(c.student(data.images, data.latents, text), size=(64, 64))
    assert iou(logits[:, :3], data.masks[:, :3]) > 0.9
    assert float((logits[:, 3] > 0).float().mean()) < 0.02  # what is in no picture is not marked


@pytest.mark.slow
def test_sixty_steps_overfit_four_pictures_with_the_reference_in_one_step(learner, tmp_path):
    """With its gates open: they start shut, and a network drawn at random first learns to do without any text then."""
    c, data = learner, FourPictures(learner.vae)
    for injection in c.reference.pathway.injections:
        torch.nn.init.ones_(injection.gate)
    settings = StageConfig(60, 8, 2e-2, prompts=4, warmup=5, ema=0.8, optimizer="muon")
    source = PairSource(data, c.vae, c.text_encoder, c.tokenizer, settings)
    loss = OneStepLoss(source, c.schedule)
    train_stage("one_step", c.reference.requires_grad_(True), loss, settings, tmp_path, False)
    with torch.no_grad():
        text = encode_text(c.text_encoder, c.tokenizer, list(data.names))
        latents = c.reference.sample(data.latents, *text, c.schedule, steps=1)
        logits = decode_mask(c.vae, latents).view_as(data.masks)
    assert iou(logits[:, :3], data.masks[:, :3]) > 0.7
    assert float((logits[:, 3] > 0).float().mean()) < 0.02


def test_a_student_of_stable_diffusion_starts_from_the_tuned_reference_and_knows_its_words(tmp_path, raw_tokenizer):
    source = write_directory(tmp_path / "sd", raw_tokenizer, style="2.1")
    moving = StageConfig(2, 2, 1e-2, warmup=1, optimizer="adamw", ema=0.0)
    still = replace(moving, learning_rate=1e-12, weight_decay=0.0, prompts=3)
    settings = short_run(scenes=4, size=128, reference=moving, one_step=moving, student=still)
    c = load_checkpoint(finetune(str(source), tmp_path / "run", settings, data="scenes:crops"))
    start = load_file(source / "unet" / "diffusion_pytorch_model.safetensors")
    tuned, student = c.reference.unet.state_dict(), c.student.unet.state_dict()
    moved = max(float((tuned[name] - start[name]).abs().max()) for name in start if name != "conv_in.weight")
    apart = max(float((tuned[name] - student[name]).abs().max()) for name in tuned)
    assert moved > 5e-3 and apart < 1e-4
    width = c.student.text_whiten.shape[0]
    assert c.student.text_centre.any() and not torch.allclose(c.student.text_whiten, torch.eye(width), atol=0.1)
