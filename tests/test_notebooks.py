"""The notebooks run from top to bottom, as they stand, in a folder of their own."""

import os
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "examples"


def executed(name: str, folder: Path, monkeypatch):
    """The notebook after a run in a copy of examples/. Raises CellExecutionError with the failing cell."""
    nbformat = pytest.importorskip("nbformat", reason="notebooks need the extra [dev]")
    from nbclient import NotebookClient

    shutil.copytree(NOTEBOOKS, folder / "examples")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    NotebookClient(
        notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": str(folder / "examples")}}
    ).execute()
    return notebook


def printed(notebook) -> str:
    return "".join(output.text for cell in notebook.cells for output in cell.get("outputs", ()) if "text" in output)


def test_asking_pictures_prints_what_the_committed_notebook_shows(tmp_path, monkeypatch):
    import nbformat

    found = printed(executed("segment.ipynb", tmp_path, monkeypatch)).splitlines()
    committed = printed(nbformat.read(NOTEBOOKS / "segment.ipynb", as_version=4)).splitlines()
    assert "the road" in committed[0] and len(committed) == 9
    assert [line.split()[:2] for line in found] == [line.split()[:2] for line in committed]


@pytest.mark.slow
def test_training_on_own_pictures_leaves_a_checkpoint_and_scores(tmp_path, monkeypatch):
    monkeypatch.setenv("SCALE", "0.01")  # two steps
    text = printed(executed("train.ipynb", tmp_path, monkeypatch))
    assert "12 of 12 pictures are sound" in text and "2/2" in text and "checkpoint written to" in text
    assert "wrote " in text and "Traceback" not in text and "error:" not in text
