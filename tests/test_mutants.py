"""The list of planted errors (scripts/mutants.toml) fits the code: every entry finds its line, its tests are there."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_every_planted_error_finds_its_line_and_its_tests(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "scripts"), *sys.path])
    from mutants import read_list

    mutants = read_list()
    assert len(mutants) >= 100
    files = [test for mutant in mutants for test in mutant.tests if test.startswith("tests/")]
    missing = [test for test in files if not (ROOT / test.split("::")[0]).is_file()]
    assert not missing
