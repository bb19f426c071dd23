"""Checkpoints on disk: what is saved comes back; what is missing or wrong is named."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from digseg_engine.errors import CheckpointError, UsageError
from digseg_engine.model.config import DigsegConfig, preset
from digseg_engine.model.pretrained import BUNDLED, load_checkpoint, stored_name


def test_round_trip_keeps_every_weight_to_fp16(nano, nano_folder):
    loaded = load_checkpoint(nano_folder)
    assert loaded.config == nano.config
    for a, b in ((nano.student, loaded.student), (nano.reference, loaded.reference), (nano.vae, loaded.vae)):
        for name, value in a.state_dict().items():
            assert torch.equal(value.half().float(), b.state_dict()[name]), name
    assert loaded.stride == 8 and loaded.tokenizer.ids("red circle") == nano.tokenizer.ids("red circle")


@pytest.mark.parametrize(
    "part",
    ["digseg.json", "vae/config.json", "unet/config.json", "tokenizer/tokenizer.json", "student/model.safetensors"],
)
def test_missing_part_is_named(nano_folder, part):
    (nano_folder / part).unlink()
    with pytest.raises(CheckpointError, match=part.split("/")[-1].replace(".", r"\.")):
        load_checkpoint(nano_folder)


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_a_text_encoder_is_read_whichever_release_of_transformers_named_its_tensors(nano, nano_folder, prefix):
    path = nano_folder / "text_encoder" / "model.safetensors"
    named = {prefix + name.removeprefix("text_model."): value for name, value in load_file(path).items()}
    save_file(named, path, {"format": "pt"})
    held, read = nano.text_encoder.state_dict(), load_checkpoint(nano_folder).text_encoder.state_dict()
    assert all(torch.equal(value.half().float(), read[name]) for name, value in held.items())
    renamed = {stored_name(name, named) for name in held}
    assert renamed == set(named)


@pytest.mark.parametrize("part", ["text_encoder/model", "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model"])
def test_weights_that_are_not_there_are_named_and_never_drawn_at_random(nano_folder, part):
    path = nano_folder / f"{part}.safetensors"
    tensors = load_file(path)
    lost = sorted(name for name in tensors if name.endswith("weight"))[0]
    del tensors[lost]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(
        CheckpointError, match=rf"no weights for (text_model\.)?{lost.removeprefix('text_model.')} \(1 tensor missing"
    ):
        load_checkpoint(nano_folder)


def test_damaged_and_foreign_checkpoints_are_refused(nano_folder, tmp_path):
    weights = nano_folder / "student" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="does not fit"):
        load_checkpoint(nano_folder)
    body = json.loads((nano_folder / "digseg.json").read_text())
    (nano_folder / "digseg.json").write_text(json.dumps({**body, "format": "digseg.checkpoint/9"}))
    with pytest.raises(CheckpointError, match="checkpoint/9"):
        load_checkpoint(nano_folder)
    (nano_folder / "digseg.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(nano_folder)
    with pytest.raises(CheckpointError, match="not found"):
        load_checkpoint(tmp_path / "nowhere")


def test_weights_of_another_size_are_refused(nano_folder):
    config = DigsegConfig.load(nano_folder)
    body = json.loads((nano_folder / "digseg.json").read_text())
    body["student"]["head_width"] = config.student.head_width + 4
    (nano_folder / "digseg.json").write_text(json.dumps(body))
    with pytest.raises(CheckpointError, match="does not fit"):
        load_checkpoint(nano_folder)


def test_bundled_model_fits_the_repository():
    files = [path for path in BUNDLED.rglob("*") if path.is_file()]
    weights = sum(path.stat().st_size for path in files if path.suffix == ".safetensors")
    assert weights <= 20_000_000 and sum(path.stat().st_size for path in files) <= weights + 2_000_000


def test_presets_are_known_by_name():
    assert preset("sd21").unet["block_out_channels"] == (320, 640, 1280, 1280)
    with pytest.raises(UsageError, match="tiny, sd21"):
        preset("sd99")
