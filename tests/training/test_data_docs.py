"""What docs/data.md shows is what the code takes: the example file, the Python lines, the table of layouts."""

import json
import re
from pathlib import Path

from dataset_trees import grey, label_map, picture

from digseg_engine.data.classes import parse_classes
from digseg_engine.data.datasets import layout_names

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text()
BLOCKS = dict(re.findall(r"^```(json|python)\n(.*?)^```", TEXT, re.M | re.S))


def test_the_example_of_classes_is_accepted_and_the_python_lines_run(tmp_path, monkeypatch):
    assert parse_classes(json.loads(BLOCKS["json"]), "docs").names == ("road", "car")
    picture(tmp_path / "mydata/images/0001.png")
    grey(tmp_path / "mydata/masks/0001.png", label_map([0, 1, 2, 255]))
    (tmp_path / "mydata/classes.json").write_text(BLOCKS["json"])
    monkeypatch.chdir(tmp_path)
    room: dict = {}
    exec(compile(BLOCKS["python"], "data.md", "exec"), room)
    assert room["name"] == "0001" and sorted(set(room["ids"].ravel().tolist())) == [-2, -1, 0, 1]


def test_every_layout_is_in_the_table():
    assert set(re.findall(r"^\| `([a-z0-9-]+)` \|.*\|.*\|.*\|$", TEXT, re.M)) == set(layout_names()[1:])
