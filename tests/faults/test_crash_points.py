"""Deaths at named places (`digseg_engine/crash_points.py`): what has its final name is whole, and the next run tidies up.
All places of all commands are gone through by `python benchmarks/crashes.py`; here a slice of it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from programs import run_program

from digseg_engine import crash_points

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "crashes.py"
posix = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
WRITE = """
import sys
from digseg_engine.files import write_json
write_json(sys.argv[1], {"new": True})
"""
ENDS = {"exit": crash_points.EXIT_CODE, "kill": -signal.SIGKILL} if sys.platform != "win32" else {}
PLACES = ["file created", "file filled", "file flushed", "file renamed"]


def write(path, crash):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DIGSEG_CRASH": crash}
    done = subprocess.run([sys.executable, "-c", WRITE, str(path)], env=environment, check=False, capture_output=True)
    return done.returncode


def test_without_the_variable_nothing_happens(monkeypatch):
    monkeypatch.setattr(crash_points, "_pass", lambda name: pytest.fail("it looked"))
    crash_points.reached("anything")


@posix
@pytest.mark.parametrize("how", ENDS)
def test_a_file_is_the_older_or_the_newer_one_at_every_place(tmp_path, how):
    path = tmp_path / "a.json"
    assert write(path, f"log:{tmp_path / 'log'}") == 0
    assert (tmp_path / "log").read_text().splitlines() == PLACES
    (tmp_path / "log").unlink()
    for number, place in enumerate(PLACES, 1):
        path.write_text('{"old": true}')
        assert write(path, f"{number}:{how}") == ENDS[how]
        assert json.loads(path.read_text()) == ({"new": True} if place == "file renamed" else {"old": True})
        assert len(list(tmp_path.glob(".digseg-*"))) == (0 if place == "file renamed" else 1)
    assert write(path, "") == 0 and [each.name for each in tmp_path.iterdir()] == ["a.json"]


@posix
def test_a_slice_of_all_places_and_of_processes_that_want_the_same(tmp_path):
    words = ["--only", "segment,together", "--each", 1, "--kills", 1, "--processes", 3, "--rounds", 1]
    done = run_program([sys.executable, SCRIPT, *words, "--json", tmp_path / "f.json"])
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "f.json").read_text())
    segment = found["scenarios"]["segment"]
    assert segment["wrong"] == [] and segment["deaths"]["exit"] == segment["deaths"]["kill"] == 4
    assert segment["places"] == dict.fromkeys(PLACES, 4)
    assert found["together"] == {"processes": 3, "rounds": 1, "builds_in_a_round": {"1": 1}, "failed": 0}
