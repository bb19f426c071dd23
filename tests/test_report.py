"""Tables that are made from committed figures are those figures."""

import re
import shutil
import sys
from pathlib import Path

import pytest
from programs import run_program

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import report  # noqa: E402

BY_HAND = {  # tables of decimals that no committed figures make: their heads, and why
    "| JetPack | boards | system | CUDA | TensorRT |": "releases",
    "| form, K | GFLOP | MB | keys per prompt | H200 memory / compute floor | Orin memory / compute floor |": "computed",
    "| stage | trained | weights | gradients | moments | average | peak |": "counted by the command named above it",
    "| recipe | stage | steps | pictures | prompts | optimizer | rate | warm-up | average | precision |": "its test prints it",
}
TABLE = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)
FIGURE = re.compile(r"-?\d[\d,]*\.\d")


@pytest.mark.parametrize("path", report.PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_table_is_what_its_figures_say(path):
    text = path.read_text(encoding="utf-8")
    assert report.rewritten(text) == text, "python benchmarks/report.py"


def of_figures(table):
    """Do two lines or more have two cells or more that begin with a decimal number?"""
    lines = [[cell for cell in line.split(" | ") if FIGURE.match(cell.strip("| "))] for line in table.splitlines()]
    return sum(len(cells) > 1 for cells in lines) > 1


def test_no_table_of_figures_is_written_by_hand():
    by_hand = []
    for path in report.PAGES:
        rest = report.MARKED.sub("", path.read_text(encoding="utf-8"))
        by_hand += [table[0].split("\n", 1)[0] for table in TABLE.finditer(rest) if of_figures(table[0])]
    assert sorted(by_hand) == sorted(BY_HAND), "give it a function in benchmarks/report.py, or say here why not"


def test_every_table_stands_somewhere():
    """A comment that is misspelt would leave its table to nobody."""
    text = "".join(path.read_text(encoding="utf-8") for path in report.PAGES)
    named = [found["name"] for found in report.MARKED.finditer(text)]
    assert sorted(named) == sorted(report.TABLES)
    assert text.count("<!-- table:") == text.count("<!-- end -->") == len(named)


def test_a_page_that_differs_is_named_and_written(tmp_path):
    """The script itself, on a copy with one figure changed."""
    scripts = [path.relative_to(ROOT).as_posix() for path in ROOT.glob("benchmarks/report*.py")]
    for name in (*scripts, "benchmarks/results", "docs", "README.md"):
        source, target = ROOT / name, tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    page = tmp_path / "README.md"
    right = page.read_text()
    page.write_text(right.replace("| nuclei: nucleus | 120 | 0.", "| nuclei: nucleus | 120 | 1.", 1))
    script = [sys.executable, tmp_path / "benchmarks" / "report.py"]
    checked = run_program([*script, "--check"])
    assert checked.returncode == 1 and checked.stdout == "README.md differs from the figures\n"
    assert page.read_text() != right
    assert run_program(script).returncode == 0 and page.read_text() == right
    assert run_program([*script, "--check"]).returncode == 0


def test_a_table_that_nobody_makes():
    with pytest.raises(SystemExit, match="no table 'what'"):
        report.rewritten("<!-- table: what -->\n<!-- end -->")
