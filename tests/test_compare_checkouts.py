"""scripts/compare_checkouts.py: one line an item, and 1 where something differs that was not listed."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ITEM = "help digseg scenes"


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """A checkout in which one command says something else."""
    root = tmp_path_factory.mktemp("changed")
    shutil.copytree(
        ROOT / "digseg_engine", root / "digseg_engine", ignore=shutil.ignore_patterns("assets", "__pycache__")
    )
    scenes = root / "digseg_engine" / "commands" / "scenes.py"
    text = scenes.read_text(encoding="utf-8")
    scenes.write_text(text.replace("COMMAND = ", "PLAIN = ", 1) + CHANGE, encoding="utf-8")
    return root


CHANGE = """
from dataclasses import replace

COMMAND = replace(PLAIN, options=PLAIN.options[:-1])
"""


def compare(old, new, *words):
    command = [
        sys.executable,
        str(ROOT / "scripts" / "compare_checkouts.py"),
        str(old),
        str(new),
        "--only",
        ITEM,
        *words,
    ]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_checkout_is_equal_to_itself():
    done = compare(ROOT, ROOT)
    assert (done.returncode, done.stdout) == (0, f"equal    {ITEM}\n"), done.stderr


def test_a_difference_is_named_and_fails_unless_it_is_listed(changed):
    done = compare(ROOT, changed)
    assert done.returncode == 1 and done.stdout.startswith(f"differs  {ITEM}: "), done.stderr
    listed = compare(ROOT, changed, "--listed", "help digseg")
    assert listed.returncode == 0 and f"{ITEM} (listed)" in listed.stdout
