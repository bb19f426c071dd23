"""Two whole commands with the same input give the same files; `created` in the manifest is all that differs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_two_exports_differ_in_their_date_alone(pico_folder, tmp_path):
    program = shutil.which("digseg-export", path=str(Path(sys.executable).parent)) or "digseg-export"
    command = [program, str(pico_folder), "--rtol", "0.05", "--min-iou", "0.5", "-o"]
    running = [
        subprocess.Popen([*command, name], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for name in ("a", "b")
    ]
    for process in running:
        said = process.communicate(timeout=900)
        assert process.returncode == 0, said
    names = sorted(os.listdir(tmp_path / "a"))
    assert names == sorted(os.listdir(tmp_path / "b")) and {"segmenter.onnx", "segmenter.data", "manifest.json"} <= set(
        names
    )
    for name in set(names) - {"manifest.json"}:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    one, two = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("a", "b"))
    assert one.pop("created") and two.pop("created")
    assert one == two
