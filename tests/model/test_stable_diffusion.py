"""Starting from Stable Diffusion directories: every on-disk form loads, and the start is exactly the pretrained net."""

import json
import shutil

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from digseg_engine.errors import CheckpointError, UsageError
from digseg_engine.model.pretrained import load_checkpoint, save_checkpoint
from digseg_engine.model.sampler import Schedule
from digseg_engine.model.stable_diffusion import find_directory, load_stable_diffusion
from tests.model.sd_directories import write_directory


@pytest.fixture
def sd21(tmp_path, raw_tokenizer):
    return write_directory(tmp_path / "sd21", raw_tokenizer)


@pytest.mark.parametrize("form", [{}, {"variant": "fp16"}, {"shard": "200KB"}, {"shard": "100KB", "variant": "fp16"}])
@torch.no_grad()
def test_every_on_disk_form_starts_as_the_pretrained_network(tmp_path, raw_tokenizer, form):
    folder = write_directory(tmp_path / "sd", raw_tokenizer, **form)
    if "shard" in form:
        assert len(list((folder / "unet").glob("*-of-*.safetensors"))) > 1
    model, _ = load_stable_diffusion(folder)
    pretrained = UNet2DConditionModel.from_pretrained(folder / "unet", variant=form.get("variant")).float()
    z, m, t = torch.randn(2, 4, 16, 16), torch.randn(2, 4, 16, 16), torch.tensor([999, 500])
    text = torch.randn(2, 8, 24)
    wanted = pretrained.float()(z, t, text).sample
    assert (model.reference(torch.cat([z, m], 1), t, text) - wanted).abs().max() < 1e-5
    assert model.config.prediction == "v_prediction" and model.stride == 64 and model.config.image_size == 96


@torch.no_grad()
def test_noise_prediction_is_read_as_v(tmp_path, raw_tokenizer):
    folder = write_directory(tmp_path / "sd15", raw_tokenizer, style="1.5")
    model, _ = load_stable_diffusion(folder)
    schedule = model.schedule
    assert model.config.prediction == "epsilon" and 0.004 < float(schedule.alpha_bar[-1]) < 0.005
    pretrained = UNet2DConditionModel.from_pretrained(folder / "unet")
    z, m, t, text = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8), torch.tensor([700]), torch.randn(1, 8, 24)
    epsilon = pretrained(z, t, text).sample
    v = model.reference(torch.cat([z, m], 1), t, text)
    signal, sigma = schedule.coefficients(t, m)
    assert torch.allclose(schedule.clean(m, v, t), (m - sigma * epsilon) / signal, atol=1e-4)


def test_the_noise_that_the_directory_was_trained_on_is_read_or_refused(tmp_path, raw_tokenizer):
    folder = write_directory(tmp_path / "sd", raw_tokenizer, style="1.5")
    path = folder / "scheduler" / "scheduler_config.json"
    body = json.loads(path.read_text())
    linear = {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}
    path.write_text(json.dumps({**body, **linear}))
    model, tokenizer_json = load_stable_diffusion(folder)
    theirs = DDIMScheduler(**linear).alphas_cumprod
    assert torch.allclose(model.schedule.alpha_bar.float(), theirs, atol=1e-5)
    assert float(model.schedule.alpha_bar[500]) == pytest.approx(0.0778, abs=1e-4)
    save_checkpoint(model, tokenizer_json, tmp_path / "saved")
    assert torch.equal(load_checkpoint(tmp_path / "saved").schedule.alpha_bar, model.schedule.alpha_bar)
    refused = {"squaredcos_cap_v2": {"beta_schedule": "squaredcos_cap_v2"}, "trained_betas": {"trained_betas": [0.1]},
               "0.5 and beta_end 0.012": {"beta_start": 0.5}, "'many'": {"beta_end": "many"}}  # fmt: skip
    for words, wrong in refused.items():
        path.write_text(json.dumps({**body, **wrong}))
        with pytest.raises(CheckpointError, match=words):
            load_stable_diffusion(folder)


def test_conversion_inverts_the_two_parameterisations():
    schedule = Schedule.scaled_linear()
    clean, noise, t = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2), torch.tensor([0, 500, 999])
    v = schedule.velocity_of_noise(schedule.add_noise(clean, noise, t), noise, t)
    assert torch.allclose(v, schedule.velocity(clean, noise, t), atol=1e-4)


@torch.no_grad()
def test_start_is_saved_and_comes_back(tmp_path, sd21):
    model, tokenizer_json = load_stable_diffusion(sd21, name="mine")
    assert model.tokenizer.ids("a red circle")[0] == 0 and model.tokenizer.ids("a red circle")[-1] == 1
    assert model.student.neutral.abs().sum() > 0
    save_checkpoint(model, tokenizer_json, tmp_path / "saved")
    again = load_checkpoint(tmp_path / "saved")
    assert again.config == model.config and again.config.name == "mine"
    assert again.tokenizer.ids("red circle, blue") == model.tokenizer.ids("red circle, blue")
    weight = model.student.unet.conv_in.weight
    assert weight.shape[1] == 8 and torch.equal(weight.half().float(), again.student.unet.conv_in.weight)


@pytest.mark.parametrize(
    "part", ["unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json",
             "tokenizer/vocab.json"],
)  # fmt: skip
def test_missing_file_is_named(sd21, part):
    (sd21 / part).unlink()
    with pytest.raises(CheckpointError, match=f"sd21 lacks .*{part}"):
        load_stable_diffusion(sd21)


def test_weights_missing_or_in_another_format_are_named(sd21):
    weights = sd21 / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(CheckpointError, match=r"unet has no weights: expected diffusion_pytorch_model\.safetensors"):
        load_stable_diffusion(sd21)


def test_damaged_weights_are_named(sd21):
    weights = sd21 / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(CheckpointError, match="vae cannot be loaded as AutoencoderKL"):
        load_stable_diffusion(sd21)


def test_parts_that_do_not_fit_are_refused(sd21):
    config = sd21 / "scheduler" / "scheduler_config.json"
    body = json.loads(config.read_text())
    config.write_text(json.dumps({**body, "prediction_type": "sample"}))
    with pytest.raises(CheckpointError, match="prediction_type 'sample'; expected epsilon"):
        load_stable_diffusion(sd21)
    config.write_text(json.dumps(body))
    unet = UNet2DConditionModel(
        in_channels=9, block_out_channels=(16, 24), layers_per_block=1, norm_num_groups=8, cross_attention_dim=24,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    shutil.rmtree(sd21 / "unet")
    unet.save_pretrained(sd21 / "unet")
    with pytest.raises(UsageError, match="9 input channels"):
        load_stable_diffusion(sd21)


def test_a_name_that_is_nothing_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="neither a directory nor a hub id"):
        find_directory(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="neither a directory nor a hub id"):
        find_directory("one/two/three")


def test_hub_name_without_a_network_is_one_clear_error(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="could not be downloaded"):
        find_directory("nobody/no-such-model")
