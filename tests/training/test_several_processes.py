"""Two processes repeat what one process accumulates, and a killed run of two resumes to the same weights."""

import sys
from pathlib import Path

import pytest
from conftest import run_command
from safetensors.torch import load_file

PROGRAM = Path(__file__).with_name("several_processes.py")


def launch(folder, processes, accumulate, kill_at=-1, mode="new"):
    several = (
        "--multi_gpu" if processes > 1 else "--cpu"
    )  # accelerate's name for torch's launcher, with or without GPUs
    return run_command(
        sys.executable, "-m", "accelerate.commands.launch", several, "--num_processes", str(processes),
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
        str(PROGRAM), str(folder), str(accumulate), str(kill_at), mode,
        cwd=folder.parent, env={"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def difference(a, b):
    one, two = (load_file(folder / "weights.safetensors") for folder in (a, b))
    return max(float((one[name] - two[name]).abs().max()) for name in one)


@pytest.mark.slow
def test_two_processes_equal_one_and_a_killed_run_resumes(tmp_path):
    alone, both, cut = (tmp_path / name for name in ("alone", "both", "cut"))
    for folder, processes, accumulate in ((alone, 1, 2), (both, 2, 1)):
        done = launch(folder, processes, accumulate)
        assert done.returncode == 0, done.stderr[-3000:]
    assert difference(alone, both) < 1e-5
    assert (both / "log.csv").read_text().splitlines()[-1].startswith("7,")
    killed = launch(cut, 2, 1, kill_at=11)  # both processes stop: one is killed, the launcher ends the other
    assert killed.returncode != 0 and not (cut / "weights.safetensors").exists()
    resumed = launch(cut, 2, 1, mode="resume")
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert difference(both, cut) == 0
