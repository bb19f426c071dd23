"""The documentation: it builds without a warning, its links lead somewhere, its architecture picture is today's."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest
from programs import run_program

ROOT = Path(__file__).resolve().parent.parent


def load_script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_architecture_picture_is_that_of_the_source():
    script = load_script("architecture")
    drawn = script.PICTURE.read_text(encoding="utf-8")
    assert drawn == script.draw(script.arrows()), "run python scripts/architecture.py and look at the picture"


def test_every_box_of_the_picture_stands_above_what_it_imports():
    script = load_script("architecture")
    edges = {("a", "b"), ("b", "c"), ("a", "c"), ("d", "c")}
    assert script.layers(edges) == [["a"], ["b", "d"], ["c"]]


def test_the_site_builds_without_a_warning_or_a_dead_link(tmp_path):
    pytest.importorskip("mkdocs", reason="the documentation's own tools are not installed: pip install -e '.[docs]'")
    done = run_program([sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"], cwd=ROOT,
                       env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"})  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    commands = (tmp_path / "site" / "reference" / "commands.html").read_text(encoding="utf-8")
    assert "digseg segment" in commands and "--precision" in commands
    python = (tmp_path / "site" / "reference" / "python.html").read_text(encoding="utf-8")
    assert 'id="digseg_engine.Engine.segment"' in python


def test_an_arrow_that_follows_from_others_is_left_out():
    script = load_script("architecture")
    assert script.telling({("a", "b"), ("b", "c"), ("a", "c")}) == {("a", "b"), ("b", "c")}
