"""Pretraining as a text-to-image denoiser: captions say what is there, the loss is that of v, and the caption is heard."""

import pytest
import torch
from test_learning import FourPictures

from digseg_engine.training.loop import StageConfig, train_stage
from digseg_engine.training.objectives.noise import generator
from digseg_engine.training.objectives.text_to_image import Denoiser, TextToImageLoss, captions


@pytest.fixture
def setting(nano):
    pictures = FourPictures(nano.vae)
    config = StageConfig(60, 4, 0.005, prompts=4, warmup=2)
    return nano, pictures, TextToImageLoss(pictures, nano.text_encoder, nano.tokenizer, nano.schedule, config), config


class Oracle(torch.nn.Module):
    """Knows the clean latents: v follows from what it is shown."""

    def __init__(self, clean, schedule, wrong=1.0):
        super().__init__()
        self.clean, self.schedule, self.wrong = clean, schedule, wrong
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, noisy, timestep, text, mask):
        signal, sigma = self.schedule.coefficients(timestep, noisy)
        noise = (noisy - signal * self.clean) / sigma.clamp(min=1e-6)
        return self.wrong * (signal * noise - sigma * self.clean) + 0 * self.weight


def test_an_oracle_costs_nothing_and_a_wrong_sign_four_times_the_target(setting):
    nano, pictures, loss, config = setting
    clean = pictures.batch(0, config.batch, config.prompts).latents
    right, _ = loss(Oracle(clean, nano.schedule), 0)
    wrong, _ = loss(Oracle(clean, nano.schedule, wrong=-1.0), 0)
    none, _ = loss(Oracle(clean, nano.schedule, wrong=0.0), 0)
    assert float(right.detach()) < 1e-6 and float(wrong.detach()) == pytest.approx(4 * float(none.detach()), rel=1e-3)


def test_captions_name_what_is_there_and_nothing_else(setting):
    _, pictures, _, config = setting
    batch = pictures.batch(0, config.batch, config.prompts)
    empty = 0
    for number in range(40):
        for said, present in zip(captions(batch, generator(0, number)), batch.present):
            there = {query.name for query, shown in zip(batch.queries, present) if shown}
            absent = {query.name for query in batch.queries} - there
            if not said:
                empty += 1
                continue
            listed = said.removeprefix("a photo of ").replace(" and ", ", ").split(", ")
            assert set(listed) <= there and not set(listed) & absent
    assert 0.02 < empty / 160 < 0.25


def test_it_learns_four_pictures_and_hears_the_caption(setting, tmp_path):
    nano, _, loss, config = setting
    denoiser = Denoiser(nano.student.unet.requires_grad_(True))
    before = sum(float(loss(denoiser, step)[0].detach()) for step in range(8))
    train_stage("denoiser", denoiser, loss, config, tmp_path, False)
    after = sum(float(loss(denoiser, step)[0].detach()) for step in range(8))
    assert after < 0.7 * before
    noisy, t = torch.randn(2, 4, 16, 16), torch.tensor([500, 900])
    text, mask = torch.randn(2, 3, nano.text_encoder.config.hidden_size), torch.ones(2, 3, dtype=torch.bool)
    with torch.no_grad():
        said, other = denoiser(noisy, t, text, mask), denoiser(noisy, t, -text, mask)
        hidden = denoiser(noisy, t, torch.cat([text, -text], 1), torch.cat([mask, ~mask], 1))
    assert float((said - other).abs().max()) > 1e-4 and torch.allclose(said, hidden, atol=1e-5)


def test_a_narrow_u_net_is_asked_without_a_mask_slot(nano):
    from digseg_engine.model.pretrained import UNet2DConditionModel

    sizes = {**nano.student.unet.config, "in_channels": 4}
    unet = UNet2DConditionModel.from_config(sizes)
    text, mask = torch.randn(1, 3, nano.text_encoder.config.hidden_size), torch.ones(1, 3, dtype=torch.bool)
    with torch.no_grad():
        assert Denoiser(unet)(torch.randn(1, 4, 16, 16), torch.tensor([10]), text, mask).shape == (1, 4, 16, 16)
