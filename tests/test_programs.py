"""The runner of other programs: output, exit code, and nothing left running when its patience ends."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import pytest
from programs import run_program

TESTS = Path(__file__).resolve().parent


def test_output_and_exit_code_come_back():
    done = run_program(["bash", "-c", "cat; echo oops >&2; exit 3"], stdin="hello")
    assert (done.stdout, done.stderr, done.returncode) == ("hello", "oops\n", 3)


def test_a_program_that_hangs_is_ended_with_its_children(tmp_path):
    mark = tmp_path / "child"
    with pytest.raises(subprocess.TimeoutExpired):
        run_program(["bash", "-c", f"(while :; do date +%N > {mark}; sleep 0.05; done) & wait"], limit=2.0)
    before = mark.read_text()
    time.sleep(0.3)
    assert mark.read_text() == before


def test_no_test_has_a_time_limit_of_its_own():
    own = [path.name for path in TESTS.rglob("*.py") if path.name not in ("programs.py", "test_programs.py")
           and re.search(r"\btimeout=\d", path.read_text())]  # fmt: skip
    assert not own
