"""Faults x commands: whatever is in the way, a command ends with its exit code and one line, and leaves nothing half-written."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from programs import end, run_program

from digseg_engine.worlds.scenes import scene

DEEP = "[" * 100_000
HEAVY = pytest.mark.slow  # these import PyTorch


@pytest.fixture
def room(tmp_path, bundle):
    """in/ with two pictures, labelled/ with one labelled picture, bundle as a link-free copy's path, blocked: a file."""
    for number, name in enumerate("ab"):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(scene(number, "aerial", 96, "demo").image).save(tmp_path / "in" / f"{name}.png")
    labelled = tmp_path / "labelled"
    for folder in ("images", "masks"):
        (labelled / folder).mkdir(parents=True)
    shutil.copy(tmp_path / "in" / "a.png", labelled / "images" / "a.png")
    Image.new("L", (96, 96), 1).save(labelled / "masks" / "a.png")
    (labelled / "classes.json").write_text(json.dumps({"classes": [{"name": "road", "id": 1}]}))
    (tmp_path / "blocked").write_text("a file where a folder is wanted")
    return tmp_path


COMMANDS = {  # {out} is where it writes
    "segment": ["segment", "in", "-p", "road", "-b", "{bundle}", "-o", "{out}"],
    "tiles": ["segment", "in/a.png", "-p", "road", "-b", "{bundle}", "--tile", "64", "-o", "{out}"],
    "doctor": ["doctor", "-b", "{bundle}", "--size", "64", "--json", "{out}/choice.json"],
    "data": ["data", "labelled", "-o", "{out}/data.png"],
    "scenes": ["scenes", "--domain", "aerial", "--size", "64", "-o", "{out}"],
    "eval": [
        "eval",
        "--model",
        "{bundle}",
        "--data",
        "scenes:aerial",
        "--count",
        "1",
        "--size",
        "64",
        "--report",
        "{out}/r.json",
    ],
    "train": ["train", "--scale", "0.001", "-o", "{out}"],
    "export": ["export", "{pico}", "--precision", "fp32", "-o", "{out}"],
}
QUICK = ("segment", "tiles", "data", "scenes")
PICKED = [*QUICK, *(pytest.param(name, marks=HEAVY) for name in COMMANDS if name not in QUICK)]
LIMITED = 'ulimit -f {blocks}; exec "$@"'


@pytest.fixture
def words(room, bundle, request):
    def made(name: str, out: str) -> list[str]:
        pico = str(request.getfixturevalue("pico_folder")) if name == "export" else ""
        program = "digseg-export" if name == "export" else "digseg"
        texts = [text.format(bundle=bundle, out=out, pico=pico) for text in COMMANDS[name]]
        return [str(Path(sys.executable).parent / program), *(texts[1:] if name == "export" else texts)]

    return made


def run(command, room, **env):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    return run_program(command, cwd=room, env={name: value for name, value in environment.items() if value is not None})


def ended_well(done, room: Path, code: int) -> list[str]:
    """The command failed as it should: 2 for an output that cannot be used, 1 for one that fails on the way; returns its
    lines of complaint."""
    assert done.returncode == code, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr + done.stdout
    errors = [line for line in done.stderr.splitlines() if ": error: " in line]
    assert errors and "unexpected" not in " ".join(errors), done.stderr
    whole_files_only(room)
    return errors


def whole_files_only(room: Path) -> None:
    assert not list(room.rglob(".digseg-*"))
    for path in room.rglob("*"):
        if path.suffix == ".json" and path.is_file():
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".png" and path.is_file() and path.parent.name != "damaged":
            with Image.open(path) as picture:
                picture.load()


@pytest.mark.parametrize("name", PICKED)
def test_a_file_where_the_output_folder_goes(room, words, name):
    errors = ended_well(run(words(name, "blocked/deep"), room), room, 2)
    assert "blocked" in errors[-1] and (room / "blocked").read_text().startswith("a file")


@pytest.mark.parametrize("name", PICKED)
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that nobody can write to")
def test_a_place_where_nothing_can_be_written(room, words, name):
    errors = ended_well(run(words(name, "/proc/digseg"), room), room, 2)
    assert "/proc" in errors[-1]


@pytest.mark.parametrize("name", PICKED)
def test_a_file_in_the_place_of_the_output(room, words, name):
    errors = ended_well(run(words(name, "blocked"), room), room, 2)
    assert "blocked" in errors[-1] and (room / "blocked").read_text().startswith("a file")


@pytest.mark.parametrize("name", PICKED)
def test_a_name_that_is_too_long(room, words, name):
    errors = ended_well(run(words(name, "n" * 300), room), room, 2)
    assert "nnnn" in errors[-1]


@pytest.mark.parametrize("name", PICKED)
@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
def test_a_disk_that_is_full(room, words, name):
    """No file may grow: every write fails as on a full disk."""
    (room / "out").mkdir()
    done = run(["bash", "-c", LIMITED.format(blocks=0), "bash", *words(name, "out")], room)
    ended_well(done, room, 1)
    assert not [path for path in (room / "out").rglob("*") if path.is_file() and path.stat().st_size]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
def test_a_disk_that_fills_up_leaves_older_results_as_they_were(room, words):
    """Files may grow to 2 blocks of 512 or 1,024 bytes: less than any of these pictures, and more than what is written first."""
    command = [*words("segment", "out"), "--backend", "onnxruntime"]
    assert run(command, room).returncode == 0
    before = {path: path.read_bytes() for path in (room / "out").iterdir()}
    changed = [word if word != "road" else "water" for word in command]
    ended_well(run(["bash", "-c", LIMITED.format(blocks=2), "bash", *changed], room), room, 1)
    after = {path: path.read_bytes() for path in (room / "out").iterdir()}
    assert {path: body for path, body in after.items() if path in before} == before


@pytest.mark.parametrize(
    "name", ["segment", "scenes", pytest.param("doctor", marks=HEAVY), pytest.param("export", marks=HEAVY)]
)
@pytest.mark.parametrize("home", [None, "/nowhere/to/be/found", "/dev/null"])
def test_without_a_home_nothing_is_missed(room, words, name, home):
    (room / "out").mkdir()
    done = run(words(name, "out"), room, HOME=home, XDG_CACHE_HOME=None, DIGSEG_CACHE=None)
    assert done.returncode == 0, done.stderr
    assert "error" not in done.stderr and "Traceback" not in done.stderr


DAMAGES = {
    "manifest.json": {"no keys": "{}", "deep": DEEP, "empty": "", "a list": "[1]", "not text": b"\xff\xfe\0", "other kinds":
                      '{"format": "digseg.bundle/2", "files": 3, "model": []}'},
    "tokenizer.json": {"deep": DEEP, "empty": "", "not text": b"\xff\xfe\0"},
    "golden.safetensors": {"empty": "", "not tensors": b"\xff" * 64},
}  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, kinds in DAMAGES.items() for kind in kinds])
def test_a_damaged_bundle(room, words, bundle, name, kind):
    shutil.copytree(bundle, room / "damaged")
    body = DAMAGES[name][kind]
    (room / "damaged" / name).write_bytes(body if isinstance(body, bytes) else body.encode())
    command = [word.replace(str(bundle), "damaged") for word in words("segment", "out")]
    done = run(command, room)
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr and "unexpected" not in done.stderr and not (room / "out").exists()
    assert name in done.stderr


@pytest.mark.parametrize("body", [DEEP, "", "[]", '{"classes": 3}', '{"classes": [{"name": 3}]}', b"\xff\xfe\0"])
def test_a_damaged_class_table(room, words, body):
    (room / "labelled" / "classes.json").write_bytes(body if isinstance(body, bytes) else body.encode())
    command = words("data", "out")
    done = run(command, room)
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr and "unexpected" not in done.stderr, done.stderr
    assert "classes.json" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "name", ["segment", "tiles", pytest.param("train", marks=HEAVY), pytest.param("export", marks=HEAVY)]
)
def test_stopped_at_any_moment(room, words, name, number):
    """One line, the code of the signal, whole files only: at moments spread over the command's life."""
    began = time.monotonic()
    if name in QUICK:
        assert run(words(name, "out"), room).returncode == 0
    life = time.monotonic() - began if name in QUICK else 20.0
    moments = (0.5, 0.75, 0.95) if name in QUICK else ((0.5, 0.95) if number == signal.SIGINT else (0.75,))
    for part in moments:
        shutil.rmtree(room / "out", ignore_errors=True)
        done = stopped(words(name, "out"), room, number, part * life)
        if done.returncode == 0:
            continue  # it was quicker than its first run
        assert "Traceback" not in done.stderr, done.stderr
        if done.returncode > 0:  # a signal before the boundary stands is answered by Python itself
            assert done.returncode == 128 + number
            how = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
            (line,) = [line for line in done.stderr.splitlines() if ": error: " in line]
            assert f"stopped by {how}" in line or "was interrupted and saved after step" in line
        whole_files_only(room)


def stopped(command, room, number, after):
    process = subprocess.Popen(command, cwd=room, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               start_new_session=True)  # fmt: skip
    try:
        time.sleep(after)
        process.send_signal(number)
        out, err = process.communicate()
    finally:
        end(process) if process.poll() is None else None
    return subprocess.CompletedProcess(command, process.returncode, out, err)
