"""The few-step reference in diffusers' layout: four graphs, each verified, and a folder that says what it is."""

import json
import os

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import run_command

from digseg_engine.errors import UsageError, VerificationError
from digseg_engine.model.pretrained import load_checkpoint
from digseg_engine.precisions import Limits
from digseg_export import few_step, preflight
from digseg_export.few_step import REFERENCE_GRAPHS, export_few_step


@pytest.mark.slow
def test_four_graphs_are_exported_verified_and_loadable(pico_folder, tmp_path):
    done = export_few_step(pico_folder, "fp16", tmp_path / "r", Limits(0.05, 0.5))
    parts = {c.stage for c in done.checks}
    assert parts == {*REFERENCE_GRAPHS, "end to end", "written folder"} and all(c.relative < 0.05 for c in done.checks)
    names = {str(p.relative_to(tmp_path / "r")) for p in (tmp_path / "r").rglob("*") if p.is_file()}
    assert {spec.file for spec in REFERENCE_GRAPHS.values()} | {
        f"{spec.file.split('/')[0]}/config.json" for spec in REFERENCE_GRAPHS.values()
    } <= names
    assert {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer.json",
        "verification.json",
    } <= names
    index = json.loads((tmp_path / "r" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline" and index["unet"][1] == "UNet2DConditionModel"
    assert sorted(os.listdir(tmp_path)) == ["r"]
    # other sizes than the traced ones, against PyTorch
    checkpoint = load_checkpoint(pico_folder)
    unet = onnxruntime.InferenceSession(str(tmp_path / "r" / "unet" / "model.onnx"), providers=["CPUExecutionProvider"])
    latents, text = torch.randn(3, 8, 10, 6), torch.randn(3, 16, 24)
    mask, t = torch.arange(16).expand(3, -1) < 9, torch.tensor(321)
    with torch.no_grad():
        want = checkpoint.reference(latents, t.expand(3), text, mask).numpy()
    feeds = {"sample": latents, "timestep": t, "encoder_hidden_states": text, "token_mask": mask}
    (got,) = unet.run(None, {k: v.numpy() for k, v in feeds.items()})
    assert got.dtype == np.float32 and np.linalg.norm(got - want) < 0.02 * np.linalg.norm(want)
    model = onnx.load(str(tmp_path / "r" / "unet" / "model.onnx"), load_external_data=False)
    assert sum(t.data_type == onnx.TensorProto.FLOAT16 for t in model.graph.initializer) > 20


def test_a_graph_over_its_limit_publishes_nothing(pico_folder, tmp_path, monkeypatch):
    only = {"text encoder": few_step.TEXT}
    monkeypatch.setattr(few_step, "REFERENCE_GRAPHS", only)
    with pytest.raises(VerificationError, match=r"text encoder .* differs from PyTorch .*nothing was published"):
        export_few_step(pico_folder, "fp32", tmp_path / "r", Limits(0.0, 0.5))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--precision", "int8"], "--precision int8 does not apply to --layout diffusers"),
        (["--imgsz", "64"], "a shape option does not apply: the diffusers layout"),
        (["--target", "jetson-orin"], "--format or --target does not apply: the diffusers layout"),
        (["--auto-islands"], "a calibration or island option does not apply"),
        (["-o", "taken"], "taken exists"),
    ],
)
def test_what_the_layout_does_not_take_is_refused(tmp_path, arguments, words):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "x").touch()
    done = run_command("digseg-export", "--layout", "diffusers", *arguments, cwd=tmp_path)
    assert done.returncode == 2 and words in " ".join(done.stderr.split())


@pytest.mark.slow
def test_a_dry_run_says_what_would_be_written(tmp_path):
    done = run_command("digseg-export", "--layout", "diffusers", "--dry-run", "--json", cwd=tmp_path)
    preview = json.loads(done.stdout)
    assert (
        preview["layout"] == "diffusers"
        and preview["files"][-1] == "model_index.json"
        and preview["output"].endswith("diffusers-fp16")
    )
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="fp32 or fp16"):
        preflight.check_few_step(None, "bf16", tmp_path / "r")


@pytest.mark.slow
@pytest.mark.parametrize("part", ["unet/model.onnx", *(pytest.param(part, marks=pytest.mark.long)
                                  for part in ("tokenizer/tokenizer.json", "scheduler/scheduler_config.json"))])  # fmt: skip
def test_a_folder_that_its_user_could_not_open_is_not_published(pico_folder, tmp_path, monkeypatch, part):
    """What goes wrong after the graphs were verified is found by opening what was written."""
    write = few_step.write_configurations

    def damaged(room, *more):
        write(room, *more)
        (room / part).write_bytes((room / part).read_bytes()[:40])

    monkeypatch.setattr(few_step, "write_configurations", damaged)
    with pytest.raises(VerificationError, match=r"the written folder .*nothing was published"):
        export_few_step(pico_folder, "fp32", tmp_path / "r", Limits(0.05, 0.5))
    assert list(tmp_path.iterdir()) == []
