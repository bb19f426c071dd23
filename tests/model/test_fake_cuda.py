"""Every torch path on `cuda`, with fake tensors: a constant left on the CPU anywhere is an error here, without a GPU."""

from dataclasses import replace

import pytest
import torch
from fake_cuda import CUDA, fake_cuda, strict_slots
from nano_models import build_nano

from digseg_engine.model.devices import use_kernels
from digseg_engine.model.graph_modules import graph_modules
from digseg_engine.model.refine import Refiner


@pytest.fixture
def fake(nano, monkeypatch):
    """The nano checkpoint whose parts become fake where they are moved; its schedule was made for real."""
    assert nano.schedule.values
    with fake_cuda(monkeypatch):
        yield nano


def tokens(k, length=9):
    return torch.zeros(k, length, dtype=torch.long, device=CUDA), torch.ones(k, length, dtype=torch.bool, device=CUDA)


@pytest.mark.parametrize("steps", [1, 4])
def test_refine(fake, steps):
    refiner = Refiner(fake, CUDA)
    assert "Triton kernels" in refiner.detail
    calls = strict_slots(refiner.reference)
    picture = torch.randn(1, 3, 32, 48, device=CUDA)
    found = refiner.refine(picture, *tokens(3), torch.randn(3, 16, 24, device=CUDA), steps, seed=1)
    assert found.shape == (3, 32, 48) and found.device == CUDA
    assert calls.count("latent_concat") == 1 and calls.count("sampler_step") == steps - 1
    assert calls.count("cross_attention") == 2 * steps  # one per decoder scale
    assert next(fake.reference.parameters()).device.type == "cpu"  # the shared checkpoint stays where it is


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
def test_reference_sampler(fake, prediction):
    reference = fake.reference.to(CUDA)
    if prediction == "epsilon":
        reference.noise_schedule = fake.schedule
    z, text = torch.randn(2, 4, 8, 12, device=CUDA), torch.randn(3, 9, 24, device=CUDA)
    for steps, noise in ((1, None), (4, torch.randn(6, 4, 8, 12, device=CUDA))):
        m = reference.sample(z, text, tokens(3)[1], fake.schedule, steps, noise)
        assert m.shape == (6, 4, 8, 12) and m.device == CUDA


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_graphs(nano_preset, raw_tokenizer, monkeypatch, dtype):
    student = replace(nano_preset.digseg.student, presence_width=8)
    preset = replace(nano_preset, digseg=replace(nano_preset.digseg, student=student))
    parts = graph_modules(build_nano(preset, raw_tokenizer))
    with fake_cuda(monkeypatch):
        keys, values = parts.text_encoder.to(CUDA)(*tokens(3))
        picture, masks, sure = (
            part.to(CUDA, dtype) for part in (parts.image_encoder, parts.mask_decoder, parts.presence)
        )
        assert "Triton kernels" in use_kernels(torch.nn.ModuleList([picture, masks, sure]))
        calls = strict_slots(masks)
        image = torch.randn(2, 3, 32, 48, device=CUDA, dtype=dtype)
        text = keys.to(dtype), values.to(dtype), tokens(3)[1]
        encoding = picture(image)
        assert encoding.shape[0] == 2 and encoding.device == CUDA and encoding.dtype == dtype and calls == []
        presence = sure(encoding, *text)
        assert presence.shape == (2, 3) and presence.device == CUDA and presence.dtype == dtype
        assert calls == ["text_injection"]  # of the coarse scale alone
        logits = masks(encoding, *text)
        assert logits.shape == (2, 3, 16, 24) and logits.device == CUDA and logits.dtype == dtype
        assert calls == ["text_injection"] * 3


def test_unfolded_student(fake):
    student = fake.student.to(CUDA)
    text = student.fold_text(torch.randn(3, 9, 24, device=CUDA), tokens(3)[1])
    z, image = torch.randn(1, 4, 8, 12, device=CUDA), torch.randn(1, 3, 32, 48, device=CUDA)
    assert student(image, z, text).device == CUDA
