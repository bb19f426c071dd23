"""ONNX Runtime's telemetry is off: wherever it is imported by ours, or shown to be, our package comes first and says so. So are
Ray's usage statistics: one module of ours imports it, after saying so."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ("digseg_engine", "digseg_export")
PYTHON = [
    path
    for place in ("benchmarks", "scripts", "examples", "integrations", "docs", "kernels")
    for path in sorted((ROOT / place).rglob("*.py"))
]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SNIPPET = re.compile(r"```python\n(.*?)```", re.DOTALL)


def imported(text: str) -> list[str]:
    """Top-level names in the order in which they are imported; what a function imports comes after the module's own."""
    tree = ast.parse(text)
    first = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    later = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom)) and node not in first]
    names = []
    for node in [*first, *sorted(later, key=lambda one: one.lineno)]:
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        names += [module.split(".")[0] for module in modules]
    return names


def comes_first(text: str) -> bool:
    names = imported(text)
    return "onnxruntime" not in names or any(name in OURS for name in names[: names.index("onnxruntime")])


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_programs_import_ours_before_onnxruntime(path):
    assert comes_first(path.read_text(encoding="utf-8")), "import digseg_engine before onnxruntime"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_snippets_import_ours_before_onnxruntime(path):
    for snippet in SNIPPET.findall(path.read_text(encoding="utf-8")):
        assert comes_first(snippet), snippet


def test_the_rule_itself():
    assert not comes_first("import onnxruntime\nimport digseg_engine")
    assert not comes_first("def f():\n    import onnxruntime\n    import digseg_engine")
    assert comes_first("import digseg_engine\nimport onnxruntime")
    assert comes_first("def f():\n    import onnxruntime\nfrom digseg_engine import Engine")


def test_ray_is_told_to_report_nothing_before_it_is_imported():
    from digseg_engine.runtime import cluster

    importing = {
        path.relative_to(ROOT).as_posix()
        for place in ("digseg_engine", "export", "benchmarks", "scripts", "examples")
        for path in (ROOT / place).rglob("*.py")
        if "ray" in imported(path.read_text(encoding="utf-8"))
    }
    assert importing == {"digseg_engine/runtime/cluster.py", "benchmarks/cluster.py"}
    for name in importing:
        text = (ROOT / name).read_text(encoding="utf-8")
        connecting = text.index("import ray as library" if "runtime" in name else "from ray.cluster_utils")
        assert (
            "os.environ.update(" in text[:connecting] and "SAID" in text[text.index("os.environ.update(") : connecting]
        )
    assert cluster.SAID["RAY_USAGE_STATS_ENABLED"] == "0"
