"""SIGKILL at random (seeded) moments while something is saved over and over: what is there afterwards is whole, and goes on."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from programs import end

from digseg_engine import Engine
from digseg_engine.bundle import open_bundle

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
TESTS = Path(__file__).resolve().parent.parent
START = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {training!r}]
folder = Path({folder!r})
"""
BUNDLE = """
from digseg_engine.bundle import finish, writing
from digseg_engine.contract import BUNDLE_FORMAT
import shutil
source = Path({source!r})
import json
body = json.loads((source / "manifest.json").read_text())
body.pop("files")
while True:
    with writing(folder / "b") as draft:
        for path in source.iterdir():
            if path.name != "manifest.json":
                shutil.copyfile(path, draft / path.name)
        finish(draft, body)
    print("begun", flush=True)
"""
CHECKPOINT = """
from digseg_engine.model.pretrained import load_checkpoint, save_checkpoint
source = Path({source!r})
model, tokenizer = load_checkpoint(source), (source / "tokenizer" / "tokenizer.json").read_text()
while True:
    save_checkpoint(model, tokenizer, folder / "c")
    print("begun", flush=True)
"""
RESULTS = """
import numpy as np
from digseg_engine import Engine
result = Engine.load(Path({source!r}), "onnxruntime").segment(
    np.random.default_rng(0).integers(0, 255, (700, 900, 3), dtype=np.uint8), ["road", "water"])
while True:
    result.save(folder, "a")
    print("begun", flush=True)
"""
TRAINING = """
from small_stage import fit, line_loss
def loss(model, number):
    print("begun", flush=True)
    return line_loss(model, number)
fit(folder / "run", loss, {resume}, save_every=1, steps=20)
"""


def killed(code: str, moment: float) -> None:
    """Run a program until it has begun and `moment` seconds more, then kill it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", code], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env=environment, start_new_session=True)  # fmt: skip
    try:
        assert any(line.strip() == "begun" for line in process.stdout), process.stderr.read()
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
    finally:
        end(process)
    assert process.returncode == -signal.SIGKILL


def start(folder: Path) -> str:
    return START.format(tests=str(TESTS), training=str(TESTS / "training"), folder=str(folder))


def moments(seed: int, count: int) -> list[float]:
    draw = random.Random(seed)
    return [draw.uniform(0, 0.4) for _ in range(count)]


def test_a_bundle_is_whole_after_every_kill(tmp_path, nano_models):
    code = start(tmp_path) + BUNDLE.format(source=str(nano_models.fp32))
    for moment in moments(1, 5):
        killed(code, moment)
        opened = open_bundle(tmp_path / "b")  # every hash
        assert set(opened.manifest["files"]) == {p.name for p in nano_models.fp32.iterdir()} - {"manifest.json"}


def test_results_are_whole_after_every_kill_and_are_replaced_by_the_next_run(tmp_path, nano_models):
    code = start(tmp_path) + RESULTS.format(source=str(nano_models.fp32))
    for moment in moments(2, 4):
        killed(code, moment)
        for path in tmp_path.iterdir():
            if path.suffix == ".png":
                Image.open(path).load()
            elif path.suffix == ".json":
                json.loads(path.read_text())
            else:  # what was being written, under a name that nobody takes for a result
                assert path.name.startswith(".digseg-") and path.suffix == ".tmp"
    result = Engine.load(nano_models.fp32, "onnxruntime").segment(np.zeros((64, 64, 3), np.uint8), ["road"])
    assert all(path.is_file() for path in result.save(tmp_path, "a"))


@pytest.mark.slow
def test_a_checkpoint_is_whole_after_every_kill(tmp_path, nano_models):
    from digseg_engine.model.pretrained import load_checkpoint

    code = start(tmp_path) + CHECKPOINT.format(source=str(nano_models.checkpoint))
    for moment in moments(3, 3):
        killed(code, moment)
        assert load_checkpoint(tmp_path / "c").config.name == load_checkpoint(nano_models.checkpoint).config.name


@pytest.mark.slow
def test_training_goes_on_after_every_kill_and_ends_as_if_there_had_been_none(tmp_path):
    import torch

    sys.path.insert(0, str(TESTS / "training"))
    from small_stage import fit

    for number, moment in enumerate(moments(4, 3)):
        killed(start(tmp_path) + TRAINING.format(resume=number > 0), moment)
    whole = fit(tmp_path / "whole", save_every=20, steps=20)
    assert torch.equal(fit(tmp_path / "run", resume=True, save_every=1, steps=20), whole)
