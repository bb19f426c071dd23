"""SIGKILL of a training of two processes, launcher and all, at twenty random (seeded) moments, saves included: every resume
goes on at the last step that was saved and says so, and the weights at the end are those of an undisturbed run."""

import os
import random
import re
import subprocess
import sys
import time

import psutil
import pytest
from programs import end
from safetensors.torch import load_file

from digseg_engine.training.state import newest_state, step_of
from tests.training.launching import command, small

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
STEPS, SAVE_EVERY, KILLS = 300, 2, 20


def family(process):
    """A program and all that it started, the launcher's children being of sessions of their own."""
    parent = psutil.Process(process.pid)
    return [*parent.children(recursive=True), parent]


def killed_after_its_first_save(folder, mode, moment):
    """Launch, wait for a save of this life, and `moment` seconds more, then kill everything at once; what it printed."""
    before = step_of(newest_state(folder / "state"))
    words = command(2, "several_processes.py", folder, 2, -1, mode, STEPS, SAVE_EVERY)
    said = folder.parent / "said.txt"
    with said.open("w") as file:
        process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, cwd=folder.parent,
                                   env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True)  # fmt: skip
    try:
        while step_of(newest_state(folder / "state")) <= before:
            assert process.poll() is None, said.read_text()[-3000:]
            time.sleep(0.02)
        time.sleep(moment)
        for one in family(process):
            one.kill()
    finally:
        end(process)
    return said.read_text()


@pytest.mark.long
def test_two_processes_go_on_after_twenty_kills_with_the_bits_of_an_undisturbed_run(tmp_path):
    folder, draw, seen = tmp_path / "cut", random.Random(0), []
    saved = 0
    for number in range(KILLS):
        said = killed_after_its_first_save(folder, "new" if number == 0 else "resume", draw.uniform(0, 1.5))
        if number:
            assert re.findall(r"going on at step (\d+) of", said) == [str(saved)], said[-2000:]
        saved = step_of(newest_state(folder / "state"))
        seen.append(saved)
    assert seen == sorted(set(seen)) and seen[-1] < STEPS, seen  # every life got on, none to the end
    resumed = small(folder, 2, 2, "-1", "resume", STEPS, SAVE_EVERY)
    assert resumed.returncode == 0 and f"going on at step {saved} of" in resumed.stdout, resumed.stderr[-3000:]
    whole = small(tmp_path / "whole", 2, 2, "-1", "new", STEPS, STEPS)
    assert whole.returncode == 0, whole.stderr[-3000:]
    cut, undisturbed = (load_file(tmp_path / name / "weights.safetensors") for name in ("cut", "whole"))
    assert all(cut[name].equal(undisturbed[name]) for name in undisturbed)
    print(f"killed after saves {seen}")
