"""docs/hub.md and the card say what is so: its commands run, its places, versions and tables are the real ones."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from hub_fixtures import *  # noqa: F403
from hub_server import Repository
from programs import run_program

from digseg_engine.commands.main import command_named
from digseg_engine.hub.ids import hub_id
from digseg_engine.named import SHIPPED_BUNDLE, find_model

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "hub.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.M | re.S)
BASH = [line for language, body in BLOCKS if language == "bash" for line in body.splitlines()]


@pytest.fixture
def room(hub, tmp_path):
    """A hub with the bundle that the page names, and the files that its commands read."""
    found = hub.repositories["acme/roads"] = Repository()
    found.branches["v1"] = found.commit({path.name: path.read_bytes() for path in SHIPPED_BUNDLE.iterdir()})
    shutil.copy(ROOT / "examples" / "aerial.png", tmp_path / "photo.jpg")
    return tmp_path


def test_its_snippets_run(room):
    (python,) = [body for language, body in BLOCKS if language == "python"]
    found = {}
    exec(compile(python, "docs/hub.md", "exec"), found)
    assert found["result"].masks.shape[0] == 2
    (line,) = [line for line in BASH if line.startswith("digseg segment")]
    words = line.replace("digseg", f'{sys.executable} -c "from digseg_engine.cli import main; main()"', 1)
    done = run_program(["bash", "-c", words], env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0 and list((room / "out").iterdir()), done.stderr


def test_its_options_are_the_commands():
    flags = {flag for option in command_named("push").options for flag in option.spellings if flag.startswith("--")}
    pushing = TEXT[TEXT.index("## Push") :]
    assert set(re.findall(r"--[a-z-]+", pushing)) - {"--sign", "--bundle", "--json"} == flags


def test_the_names_it_calls_paths_are_paths():
    assert hub_id("./runs/mine") is hub_id("/runs/mine") is hub_id("a/b/c") is None
    assert hub_id("runs/mine") is not None and hub_id("acme/roads@refs/pr/1") is not None


def test_the_place_it_names_is_the_place(room, cache):
    parts = find_model("acme/roads@v1").relative_to(cache).parts
    assert [parts[0], *parts[2:4], parts[5]] == ["hub", "acme", "roads", "roads"] and re.fullmatch(
        "[0-9a-f]{40}", parts[4]
    )
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert re.search(r'hub = \["huggingface-hub>=(.*?)"\]', pyproject)[1] in TEXT
