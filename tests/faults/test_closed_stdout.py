"""Every command when nobody reads its stdout: it ends without a word and with the code of SIGPIPE; nothing is blamed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from programs import LIMIT

from digseg_engine.commands.main import NAMES
from digseg_engine.worlds.scenes import scene

CLOSED = 141
DOES = {
    "segment": ["segment", "a.png", "b.png", "-p", "road", "-b", "{bundle}", "-o", "out"],
    "json": ["segment", "a.png", "b.png", "-p", "road", "-b", "{bundle}", "-o", "out", "--json"],
    "tiles": ["segment", "a.png", "-p", "road", "-b", "{bundle}", "-o", "out", "--tile", "64"],
    "ask": ["ask", "a.png", "-b", "{bundle}", "-o", "out"],
    "doctor": ["doctor"],
    "data": ["data", "labelled"],
    "verify": ["verify", "{bundle}"],
    "push": ["push", "{bundle}", "acme/roads", "--dry-run"],
    "bench": ["bench", "{bundle}", "--backends", "onnxruntime", "--sizes", "64", "--prompts", "1", "--runs", "1"],
    "scenes": ["scenes", "--domain", "aerial", "--size", "64", "-o", "out"],
    "completion": ["completion", "bash"],
    "serve": ["serve", "--help"],
    "help": ["--help"],
    "version": ["--version"],
    "eval": ["eval", "--model", "{bundle}", "--data", "scenes:aerial", "--count", "1", "--size", "64"],
    "train": ["train", "--scale", "0.0001", "-o", "out"],
    "distill": ["distill", "{nano}", "--data", "scenes", "--scale", "0.0001", "-o", "out"],
    "export": ["--dry-run", "--json"],
}
HEAVY = ("bench", "verify", "push", "eval", "train", "distill", "export", "doctor")
TESTED = [pytest.param(name, marks=pytest.mark.slow) if name in HEAVY else name for name in DOES]


def test_no_command_is_forgotten():
    assert set(NAMES) <= {words[0] for words in DOES.values()}


@pytest.fixture
def room(tmp_path):
    for number, name in enumerate("ab"):
        Image.fromarray(scene(number, "aerial", 96, "demo").image).save(tmp_path / f"{name}.png")
    for folder in ("images", "masks"):
        (tmp_path / "labelled" / folder).mkdir(parents=True)
    shutil.copy(tmp_path / "a.png", tmp_path / "labelled" / "images")
    Image.new("L", (96, 96), 1).save(tmp_path / "labelled" / "masks" / "a.png")
    (tmp_path / "prompts.txt").write_text("road\nwater\n")
    (tmp_path / "labelled" / "classes.json").write_text('{"classes": [{"name": "road", "id": 1}]}')
    return tmp_path


def program(name: str) -> str:
    return str(Path(sys.executable).parent / ("digseg-export" if name == "export" else "digseg"))


def into_a_closed_pipe(command, room) -> subprocess.CompletedProcess[str]:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        with (room / "prompts.txt").open() as prompts:  # for the command that reads them
            return subprocess.run(
                command, cwd=room, stdin=prompts, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=LIMIT
            )
    finally:
        os.close(writing)


@pytest.mark.parametrize("name", TESTED)
@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX pipes")
def test_a_closed_pipe_ends_a_command_quietly(room, request, name):
    needed = {"{bundle}": "bundle", "{nano}": "nano_models"}
    words = list(DOES[name])
    for mark, fixture in needed.items():
        if mark in words:
            made = request.getfixturevalue(fixture)
            words[words.index(mark)] = str(made if fixture == "bundle" else made.checkpoint)
    done = into_a_closed_pipe([program(name), *words], room)
    assert done.returncode == CLOSED, done.stderr
    assert "rror" not in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not list(room.rglob(".digseg-*"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_behind_stdout_is_one_line(room):
    with open("/dev/full", "w") as full:
        done = subprocess.run([program(""), "--help"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=LIMIT)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and line.startswith("digseg: error: ") and "No space left" in line


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_behind_stdout_is_no_fault_of_the_pictures(room, bundle):
    command = [program("segment"), "segment", "a.png", "b.png", "-p", "road", "-b", str(bundle), "--json", "-o", "out"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=LIMIT, cwd=room)
    (line,) = [line for line in done.stderr.splitlines() if "error" in line]
    assert done.returncode == 1 and "cannot write to standard output: No space left" in line and ".png" not in line
