"""Every snippet of the README runs, in order, in one folder, as a stranger would run it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.M | re.S)
BASH = [line for language, body in BLOCKS if language == "bash" for line in body.strip().splitlines()]
PYTHON = [body for language, body in BLOCKS if language == "python"]


@pytest.fixture(scope="module")
def room(bundle, tmp_path_factory):
    """A folder like a clone after the first command: examples and the exported bundle."""
    room = tmp_path_factory.mktemp("readme")
    (room / "examples").symlink_to(ROOT / "examples")
    shutil.copytree(bundle, room / bundle.name)
    return room


def test_a_page_that_is_read():
    """Short, with the first command and a picture on the first screen."""
    lines = TEXT.splitlines()
    assert len(lines) <= 120
    assert next(number for number, line in enumerate(lines) if line.startswith("```")) < 10
    assert next(number for number, line in enumerate(lines) if line.startswith("![")) < 20


def test_every_block_is_known():
    assert {language for language, _ in BLOCKS} == {"bash", "python"}
    assert BASH[0] == "bash scripts/demo.sh"
    assert "bash scripts/test.sh" in BASH
    assert BASH[1] == "source .venv/bin/activate"  # a new shell after the demo knows `digseg` only then
    assert "source $root/.venv/bin/activate" in (ROOT / "scripts" / "demo.sh").read_text()
    assert len(PYTHON) == 1


def test_the_first_command_left_what_the_readme_promises(bundle):
    """The `bundle` fixture is made by scripts/demo.sh itself, the README's first command."""
    assert {path.name for path in bundle.parent.glob("out/*.overlay.png")} >= {
        "shapes.overlay.png", "cells.overlay.png", "crops.overlay.png", "aerial.overlay.png",
    }  # fmt: skip


def test_continuous_integration_runs_the_readmes_test_command():
    assert (ROOT / ".ci" / "run").read_text().strip().endswith("bash scripts/test.sh")
    assert "bash .ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()


@pytest.mark.parametrize("line", [line for line in BASH if not line.startswith(("bash ", "source "))])
def test_command_lines(room, line):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", line], cwd=room, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_python(room, monkeypatch, capsys):
    monkeypatch.chdir(room)
    exec(compile(PYTHON[0], "README.md", "exec"), {})
    assert "(2, 256, 256)" in capsys.readouterr().out
    assert (room / "overlay.png").stat().st_size > 10_000


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (ROOT / target).exists(), target


def figure_rows(text: str) -> list[list[str]]:
    """Cells of every table row that names a test set and its first figure."""
    return [line.strip("| ").split(" | ") for line in text.splitlines() if re.match(r"\| [\w, ]+ \| 0\.\d{3} \|", line)]


def test_figures_are_the_committed_ones():
    """The page on evaluation: student, bundle, every prompt alone; what the README says of them."""
    results = {name: json.loads((ROOT / "benchmarks" / "results" / f"eval-tiny-{name}.json").read_text())["figures"]
               for name in ("student", "bundle")}  # fmt: skip
    page = (ROOT / "docs" / "evaluation.md").read_text()
    in_page = page[page.index("## The bundled model") : page.index("What a small false area hides")]
    in_page = in_page[: in_page.index("<!-- table: working-sizes -->")]
    assert len(figure_rows(in_page)) == 8
    for name, student, bundle, alone in figure_rows(in_page):
        assert student == f"{results['student'][name]:.3f}" and bundle == f"{results['bundle'][name]:.3f}"
        assert alone == f"{results['student'][f'{name}, each prompt alone']:.3f}"
    rows = [float(student) for name, student, *_ in figure_rows(in_page) if "reworded" not in name]
    assert f"painted scenes it reaches {min(rows):.3f} to {max(rows):.3f}" in TEXT
    for domain in ("objects", "textures", "microscopy", "aerial", "crops"):
        assert f"{domain} {100 * results['student'][f'{domain}, false area, each prompt alone']:.2f} %" in in_page
    assert f"{results['student']['objects, seen pairs, each prompt alone']:.3f}, as a red ring" in TEXT


def test_the_domain_left_out_has_the_committed_figures_and_its_peer():
    page = (ROOT / "docs" / "training.md").read_text().replace("\n", " ")
    found = json.loads((ROOT / "benchmarks" / "results" / "leave-one-out.json").read_text())
    figures = [found["before"], found["after"], found["from_nothing"]["after"]]
    assert all(f"| {row['mIoU']:.3f} |" in page for row in figures)
    assert "--scale 0.12 --steps 200 --no-compile" in found["command"] and "--from-nothing" in page
