"""Every known layout trains; one goes the whole road: reference, one step, student, distillation, command line."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import run_command
from dataset_trees import TREES, own
from PIL import Image
from small_stage import SHORT, short_run

from digseg_engine.data.batches import FolderOptions
from digseg_engine.model.pretrained import load_checkpoint
from digseg_engine.training.recipes.distill import DistillConfig, distill
from digseg_engine.training.recipes.finetune import finetune


def changed(before, after):
    return any(not torch.equal(a, b) for a, b in zip(before.state_dict().values(), after.state_dict().values()))


@pytest.mark.slow
@pytest.mark.parametrize("layout", TREES)
def test_every_layout_trains_two_steps(nano, nano_folder, tmp_path, layout):
    TREES[layout](tmp_path / "data")
    settings = short_run(size=32, student=SHORT)
    written = finetune(str(nano_folder), tmp_path / "run", settings, data=str(tmp_path / "data"))
    assert changed(nano.student, load_checkpoint(written).student)
    rows = (tmp_path / "run" / "student" / "log.csv").read_text().strip().splitlines()
    assert len(rows) == 3 and "nan" not in " ".join(rows)


@pytest.mark.slow
def test_the_whole_road_on_a_folder(nano, nano_folder, tmp_path):
    TREES["voc2012"](tmp_path / "data")
    folder = FolderOptions(cached_crops=2)
    settings = short_run(size=32, folder=folder, reference=SHORT, one_step=SHORT, student=SHORT)
    written = finetune(str(nano_folder), tmp_path / "run", settings, data=str(tmp_path / "data"))
    assert changed(nano.reference, load_checkpoint(written).reference)
    assert len(list((tmp_path / "run" / "latents").glob("*.f16"))) == 1
    config = DistillConfig(
        scenes=4, size=32, folder=replace(folder, cached_crops=0), teacher_steps=2, grid=(1,), few_step=SHORT, student=SHORT,
        report_scenes=1,
    )  # fmt: skip
    distilled = distill(str(written), tmp_path / "distilled", config, data=str(tmp_path / "data"))
    body = json.loads((distilled / "distill.json").read_text())
    assert body["sets"] == ["data val"] and [row["steps"] for row in body["rows"]] == [2, 1, 1, 1]


@pytest.mark.slow
def test_the_command_line_trains_on_a_folder(nano_folder, tmp_path):
    own(tmp_path / "data")
    done = run_command("digseg", "train", "--init", str(nano_folder), "--data", "data", "--student-only", "--size", "32",
                       "--scale", "0.0001", "--cached-crops", "1", "-o", "run", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    described = json.loads((tmp_path / "run" / "train.json").read_text())
    assert described["folder"] == {"layout": None, "split": "train", "cached_crops": 1, "workers": 2, "readers": "threads",
                                   "echo": 1, "balance": 0.0, "augment": [], "shard_window": None,
                                   "shard_cache": None}  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "data"], "training from nothing needs scenes, got --data data"),
        (["--layout", "voc2012"], "--layout has no effect without --data"),
        (["--init", "nothing", "--data", "data", "--workers", "-1"], "--workers must be a whole number of at least 0"),
    ],
)
def test_refused_command_lines(tmp_path, arguments, words):
    own(tmp_path / "data")
    done = run_command("digseg", "train", *arguments, cwd=tmp_path)
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_the_data_command(tmp_path):
    TREES["loveda"](tmp_path / "data")
    done = run_command("digseg", "data", "data", "--split", "val", "-o", "out/sheet.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = {
        line.split("│")[1].strip(): line.split("│")[2:6] for line in done.stdout.splitlines() if line.startswith("│")
    }
    assert [cell.strip() for cell in lines["agricultural"]] == ["agricultural land", "2", "512", "11.43 %"]
    assert [cell.strip() for cell in lines["(ignored)"]][:3] == ["", "2", "640"]
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.width > 500


def test_the_data_command_lists_every_problem(tmp_path):
    own(tmp_path / "data", count=5)
    (tmp_path / "data" / "masks" / "p1.png").write_bytes(b"no")
    (tmp_path / "data" / "masks" / "p2.png").rename(tmp_path / "data" / "masks" / "p9.png")
    Image.new("L", (8, 8), 200).save(tmp_path / "data" / "masks" / "p3.png")
    done = run_command("digseg", "data", "data", cwd=tmp_path)
    assert done.returncode == 2
    for words in ("p1.png is not a picture", "p2.png has no mask; expected data/masks/p2.png", "p3.png: unknown id 200",
                  "p9.png has no picture", "4 problems in data"):  # fmt: skip
        assert words in done.stderr
    assert (
        sum(": error: " in line for line in done.stderr.splitlines()) == 5
        and "2 of 5 pictures can be read" in done.stdout
    )
    (tmp_path / "empty").mkdir()
    done = run_command("digseg", "data", "empty", cwd=tmp_path)
    assert done.returncode == 2 and "empty is empty; expected images/" in done.stderr
