"""README.md in this folder is the one list of attacks: every line names a test that is there, and every test here is in it."""

import ast
import re
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
LINE = re.compile(r"^\| .+ \| .+ \| `(tests/[\w/]+\.py)::(\w+)` \|$", re.MULTILINE)


def names_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_every_line_names_a_test_and_every_attack_here_has_its_line():
    listed = LINE.findall((HERE / "README.md").read_text(encoding="utf-8"))
    assert len(set(listed)) == len(listed) >= 40
    for file, name in listed:
        assert name in names_in(ROOT / file), f"{file}::{name}"
    for path in sorted(HERE.glob("test_*.py")):
        if path.name != Path(__file__).name:
            missing = names_in(path) - {name for file, name in listed if file == f"tests/attacks/{path.name}"}
            assert not missing, f"{path.name}: {sorted(missing)} lack a line in README.md"
