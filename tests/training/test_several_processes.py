"""Two processes repeat what one process accumulates, on generated data and on a folder; a killed run of two resumes."""

import shutil
from pathlib import Path

import pytest
from dataset_trees import TREES
from launching import launch, small
from safetensors.torch import load_file

STUDENT = Path("student") / "weights.safetensors"


def difference(one, two):
    a, b = load_file(one), load_file(two)
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.slow
def test_two_processes_equal_one_and_a_killed_run_resumes(tmp_path):
    alone, both, cut = (tmp_path / name for name in ("alone", "both", "cut"))
    for folder, processes in ((alone, 1), (both, 2)):
        done = small(folder, processes, 2)
        assert done.returncode == 0, done.stderr[-3000:]
    weights = [folder / "weights.safetensors" for folder in (alone, both, cut)]
    assert difference(weights[0], weights[1]) < 1e-5
    assert (both / "log.csv").read_text().splitlines()[-1].startswith("8,")
    killed = small(cut, 2, 2, kill_at=11)  # both processes stop: one is killed, the launcher ends the other
    assert killed.returncode != 0 and not weights[2].exists()
    shutil.copytree(cut, tmp_path / "fewer")
    resumed = small(cut, 2, 2, mode="resume")
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert difference(weights[1], weights[2]) == 0
    resumed = small(
        tmp_path / "fewer", 1, 2, mode="resume"
    )  # on another number of processes: the same but for rounding
    assert "the state is of 2 processes, the run goes on in 1 process" in resumed.stderr
    assert difference(weights[1], tmp_path / "fewer" / "weights.safetensors") < 1e-5


@pytest.mark.long
def test_two_processes_equal_one_on_a_folder_of_pictures(nano_folder, tmp_path):
    TREES["folder"](tmp_path / "data")
    alone, both = tmp_path / "alone", tmp_path / "both"
    for out, processes in ((alone, 1), (both, 2)):
        done = launch(processes, "several_processes_folder.py", tmp_path, nano_folder, tmp_path / "data", out, 2)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("quality, mean IoU of") == 2  # of two runs, each in one process
    start = nano_folder / "student" / "model.safetensors"
    for name in ("new", "kept"):
        assert difference(alone / name / STUDENT, both / name / STUDENT) < 1e-5
        assert difference(start, both / name / STUDENT) > 1e-3  # far more than the tolerance was learned
    assert difference(both / "new" / STUDENT, both / "kept" / STUDENT) > 1e-3
    assert (both / "new" / "checkpoint" / "digseg.json").is_file()
    assert (both / "new" / "checkpoint" / "quality.json").is_file()
