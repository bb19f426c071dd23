"""The way large models take (weights on disk, stand-ins traced, one data file written once), on a pico model."""

import itertools
import shutil

import numpy as np
import onnx
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file

from digseg_engine.errors import CheckpointError, UsageError
from digseg_engine.model import folder
from digseg_engine.model.autoencoder import encode_image
from digseg_engine.model.pretrained import load_checkpoint
from digseg_engine.precisions import Limits
from digseg_engine.runtime.backends.ort_backend import OrtBackend
from digseg_engine.runtime.source import open_source
from digseg_export import disk_offload, preflight
from digseg_export.publish import export_bundle

SMALL = 1024  # numbers; what the optimiser compares by content is below


@pytest.fixture
def large(monkeypatch, pico_folder):
    """The pico checkpoint, taken for a large one."""
    monkeypatch.setattr(folder, "LARGE", 0)
    monkeypatch.setattr(disk_offload, "SMALL", SMALL)
    return pico_folder


def answers(checkpoint):
    """Text features and logits of one picture, 2 prompts."""
    ids, mask = (torch.from_numpy(array) for array in checkpoint.tokenizer.encode(("red circle", "zebra")))
    image = torch.linspace(-1, 1, 3 * 32 * 48).view(1, 3, 32, 48)
    with torch.no_grad(), disk_offload.computing(checkpoint):
        text = checkpoint.text_encoder(ids).last_hidden_state
        folded = checkpoint.student.fold_text(text, mask)
        return text, checkpoint.student(image, encode_image(checkpoint.vae, image), folded)


def test_an_offloaded_checkpoint_answers_as_a_loaded_one_and_holds_nothing(large, tmp_path):
    offloaded = disk_offload.open_offloaded(large)
    waiting = disk_offload.stand_ins(offloaded.student)
    assert waiting and all(p.numel() > SMALL and p.untyped_storage().nbytes() == 4 for p in waiting.values())
    for got, want in zip(answers(offloaded), answers(load_checkpoint(large))):
        assert torch.equal(got, want)
    assert all(p.untyped_storage().nbytes() == 4 for p in waiting.values())  # read, used, dropped
    assert offloaded.stride == load_checkpoint(large).stride
    with pytest.raises(UsageError, match=r"--precision int8 does not apply .* use fp16 or bf16"):
        preflight.check_size(large, "int8")
    shutil.copytree(large, tmp_path / "cut")
    (tmp_path / "cut" / "student" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors not found"):
        disk_offload.open_offloaded(tmp_path / "cut")


@pytest.mark.slow
def test_the_bundle_holds_every_large_weight_once_and_is_right(large, tmp_path):
    for stop in ("answer test scenes", "check graphs"):  # with the weights, and with the converted graphs kept

        def interrupted(step, stop=stop):
            if step.startswith(stop):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            export_bundle(large, "fp16", tmp_path / "b", Limits(0.05, 0.5), interrupted)
    done = export_bundle(large, "fp16", tmp_path / "b", Limits(0.05, 0.5))
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    for part in ("image encoder", "mask decoder", "presence"):
        file = part.replace(" ", "_")
        assert {c.graph for c in done.checks if c.stage == part} == {f"{file}.onnx rounded", f"{file}.fp32.onnx"}
    assert (
        done.presence["threshold"] is None and "too few for a recall" in done.presence["reason"]
    )  # one scene was asked
    assert not any(size == 0 for size in done.sizes.values())
    path = tmp_path / "b" / "image_encoder.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    model, on_cpu = (
        onnx.load(str(path.with_name(n)), load_external_data=False) for n in (path.name, "image_encoder.fp32.onnx")
    )
    stored = {t.name: t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL}
    where = [
        {entry.key: int(entry.value) for entry in t.external_data if entry.key != "location"} for t in stored.values()
    ]
    spans = sorted((w["offset"], w["length"]) for w in where)
    assert all(a + n <= b for (a, n), (b, _) in itertools.pairwise(spans))
    assert spans[-1][0] + spans[-1][1] == path.with_suffix(".data").stat().st_size
    weights = [t for t in stored.values() if t.data_type == onnx.TensorProto.FLOAT16 and np.prod(t.dims) > SMALL]
    assert weights and {t.name for t in weights} <= {t.name for t in on_cpu.graph.initializer}
    # a convolution's weight, bit for bit as in the checkpoint
    onnx.load_external_data_for_model(model, str(tmp_path / "b"))
    held = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    with safe_open(large / "student" / "model.safetensors", "numpy") as file:
        name = "unet.down_blocks.0.resnets.0.conv2.weight"
        assert np.array_equal(held[f"student.{name}.fp16"], file.get_tensor(name))
    golden, backend = load_file(tmp_path / "b" / "golden.safetensors"), OrtBackend(open_source(tmp_path / "b"))
    keys, values = backend.encode_text(golden["token_ids"], golden["token_mask"])
    encoding, text = backend.encode_image(golden["image"]), (keys, values, golden["token_mask"])
    assert np.abs(backend.presence(encoding, *text) - golden["presence"]).max() <= 0.02
    logits = backend.decode(encoding, *text)
    assert np.linalg.norm(logits - golden["logits"]) <= 0.02 * np.linalg.norm(golden["logits"])
