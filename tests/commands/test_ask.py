"""`digseg ask`: prompts from a pipe and from a real terminal, one line for each, the overlay that grows."""

import json
import os
import sys
import time

import numpy as np
import pytest
from PIL import Image
from programs import LIMIT, end, run_program

from digseg_engine import Engine
from digseg_engine.commands.main import command_named
from digseg_engine.commands.parser import parse
from digseg_engine.named import default_bundle
from digseg_engine.runtime import asking
from digseg_engine.runtime.asking import HELP, QUESTION, Question, Session

ASK = [sys.executable, "-m", "digseg_engine", "ask"]


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "p.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)).save(path)
    return path


def test_prompts_from_a_pipe_are_answered_one_by_one(photo, tmp_path, nano_models):
    words = [*ASK, photo, "-b", nano_models.fp32, "-o", "out", "--threshold", "0.3"]
    done = run_program(words, cwd=tmp_path, stdin="soil\n\n  weed \nsoil\n")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["soil", "weed", "soil"] and QUESTION not in done.stdout
    assert all("ms)  ->  out/p.ask.overlay.png" in line for line in lines)
    engine = Engine.load(nano_models.fp32)
    body = json.loads((tmp_path / "out" / "p.ask.json").read_text())
    assert [mask["prompt"] for mask in body["masks"]] == ["soil", "weed"]  # each once, in the order of asking
    want = engine.segment(photo, ["soil", "weed"], threshold=0.3)
    with Image.open(tmp_path / "out" / "p.ask.overlay.png") as overlay:
        assert np.array_equal(np.asarray(overlay.convert("RGB")), np.asarray(want.overlay(2048).convert("RGB")))
    as_json = run_program([*words, "--batch", "--json"], cwd=tmp_path, stdin="weed\n")
    (line,) = [json.loads(line) for line in as_json.stdout.splitlines()[:1]]
    assert line["prompt"] == "weed" and line["area"] == pytest.approx(float(want.areas[1])) and line["seconds"] > 0


def test_a_prompt_that_cannot_be_asked_is_reported_and_the_others_are_answered(
    photo, tmp_path, nano_models, monkeypatch, capsys
):
    class Lines(list):
        def isatty(self):
            return False

    monkeypatch.setattr(sys, "stdin", Lines(["soil\n", "\ud800\n", "weed\n"]))  # bytes that are no UTF-8 come like this
    assert asking.ask(Question(photo, tmp_path / "out", nano_models.fp32)) == 2
    said = capsys.readouterr()
    assert [line.split(":")[0] for line in said.out.splitlines()] == ["soil", "weed"]
    assert "is not valid text" in said.err


def test_a_prompt_is_left_out_of_the_overlay(photo, tmp_path, nano_models, capsys):
    from digseg_engine.images import read_picture

    engine = Engine.load(nano_models.fp32)
    session = Session(engine, read_picture(photo), Question(photo, tmp_path), "p")
    session.answer("soil")
    session.answer("weed")
    session.leave_out("soil")
    assert [mask["prompt"] for mask in json.loads((tmp_path / "p.ask.json").read_text())["masks"]] == ["weed"]
    session.leave_out("soil")
    assert "'soil' is not in the overlay; asked so far: weed" in capsys.readouterr().err
    session.leave_out("weed")
    assert session.shown == [] and "nothing else was asked" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.slow
def test_on_a_terminal_it_asks_completes_and_ends(photo, tmp_path, nano_models):
    import pty
    import subprocess

    master, slave = pty.openpty()
    process = subprocess.Popen([*map(str, ASK), str(photo), "-b", str(nano_models.fp32), "-o", "out"], cwd=tmp_path, text=True,
                               stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
                               env={**os.environ, "TERM": "xterm"})  # fmt: skip
    os.close(slave)
    seen, deadline = "", time.monotonic() + LIMIT

    def until(text):
        nonlocal seen
        while text not in seen:
            assert time.monotonic() < deadline, seen
            seen += os.read(master, 4096).decode(errors="replace")
        seen = seen.split(text, 1)[1]

    try:
        until(HELP[:30])
        until(QUESTION)
        os.write(master, b"soil\n")
        until("ms)")
        until(QUESTION)
        os.write(master, b"so\t\n")  # completed from what was asked
        until("soil: ")
        until(QUESTION)
        os.write(master, b"-soil\n")
        until("soil left out")
        until(QUESTION)
        os.write(master, b"quit\n")
        assert process.wait(LIMIT) == 0
    finally:
        os.close(master)
        end(process)


def test_the_command_asks_the_shipped_bundle_unless_another_is_named():
    values = parse(command_named("ask"), "digseg ask", ["p.png"])
    values.pop("traceback")
    assert Question(**values).bundle is None and default_bundle()[0].is_dir()
