"""Two whole commands with the same input give the same files; `created` in the manifest is all that differs."""

import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from programs import run_program


@pytest.mark.long
def test_two_exports_differ_in_their_date_alone(pico_folder, tmp_path):
    program = shutil.which("digseg-export", path=str(Path(sys.executable).parent)) or "digseg-export"
    command = [program, str(pico_folder), "--rtol", "0.05", "--min-iou", "0.5", "-o"]
    with ThreadPoolExecutor(2) as both:
        for done in both.map(lambda name: run_program([*command, name], cwd=tmp_path), ("a", "b")):
            assert done.returncode == 0, done.stdout + done.stderr
    names = sorted(os.listdir(tmp_path / "a"))
    assert names == sorted(os.listdir(tmp_path / "b")) and {
        "image_encoder.onnx",
        "image_encoder.data",
        "manifest.json",
    } <= set(names)
    for name in set(names) - {"manifest.json"}:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    one, two = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("a", "b"))
    assert one.pop("created") and two.pop("created")
    assert one == two
