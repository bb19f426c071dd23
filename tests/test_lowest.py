"""The constraints of the job at lowest versions: of what [dev] brings, and of nothing else."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROJECT = """
[project]
name = "mine"
dependencies = ["a>=1"]
[project.optional-dependencies]
heavy = ["b>=2.1", "a>=1.5"]
foreign = ["a>=9", "c>=3"]
dev = ["mine[heavy]; platform_system == 'Linux'", "d>=4"]
"""


def lowest():
    spec = importlib.util.spec_from_file_location("lowest", ROOT / "scripts" / "lowest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_bounds_of_other_extras_do_not_count():
    assert lowest().lower_bounds(PROJECT) == {"a": "1.5", "b": "2.1", "d": "4"}


def test_the_projects_own_bounds_are_read():
    found = lowest().lower_bounds((ROOT / "pyproject.toml").read_text())
    assert {"torch", "numpy", "onnxruntime", "pytest"} <= set(found) and "onnxruntime-gpu" not in found
