"""Programs of this folder in several processes, by accelerate's launcher."""

from __future__ import annotations

import sys
from pathlib import Path

from conftest import run_command

HERE = Path(__file__).parent


def command(processes, program, *arguments):
    several = (
        "--multi_gpu" if processes > 1 else "--cpu"
    )  # accelerate's name for torch's launcher, with or without GPUs
    return [
        sys.executable, "-m", "accelerate.commands.launch", several, "--num_processes", str(processes),
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
        str(HERE / program), *map(str, arguments),
    ]  # fmt: skip


def launch(processes, program, folder, *arguments):
    return run_command(*command(processes, program, *arguments), cwd=folder, env={"OMP_NUM_THREADS": "1"})


def small(folder, processes, accumulate, kill_at=-1, mode="new", *length):
    return launch(processes, "several_processes.py", folder.parent, folder, accumulate, kill_at, mode, *length)
