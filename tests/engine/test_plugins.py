"""Backends of other packages: found by their entry point, then listed, verified, timed and remembered like our own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = (ROOT, ROOT / "export", ROOT / "triton_kernels")
PLUGIN = """
from digseg_engine.runtime.backends import BackendKind, Usable, ort_backend

def create(source):
    backend = ort_backend.create(source, name="onnxruntime")
    backend.name, backend.detail = "tiny", "a plug-in"
    return backend

KIND = BackendKind("tiny", lambda: Usable("tiny", True, "a plug-in"), create)
"""
ASK = """
import json, sys
import numpy as np
from digseg_engine import Engine
from digseg_engine.runtime.choice import Task, measure, verdict_key
from digseg_engine.runtime.source import open_source

source, task = open_source(sys.argv[1]), Task(64)
rows = {row.backend: vars(row) for row in measure(source, task).rows}
engine = Engine.load(sys.argv[1], "tiny") if rows.get("tiny", {}).get("usable") else None
area = None if engine is None else engine.segment(np.full((64, 64, 3), 200, np.uint8), ["water"]).logits.size
print(json.dumps({"rows": rows, "key": verdict_key(source, task), "detail": engine and engine.backend.detail, "size": area}))
"""


def install(folder, version, body=PLUGIN, entry="tiny = tiny_backend:KIND"):
    """What an installer leaves of a package with one module."""
    about = folder / f"tiny_backend-{version}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tiny-backend\nVersion: {version}\n")
    (about / "entry_points.txt").write_text(f"[digseg_engine.backends]\n{entry}\n")
    (folder / "tiny_backend.py").write_text(body)
    os.utime(folder / "tiny_backend.py", (0, 0))  # of the two versions the file is the same, to the second
    return folder


def ask(bundle, *folders):
    path = os.pathsep.join(map(str, (*SOURCES, *folders)))
    done = subprocess.run([sys.executable, "-c", ASK, str(bundle)], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": path})  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_an_installed_backend_is_listed_verified_timed_and_run(nano_models, own_cache, tmp_path):
    found, _ = ask(nano_models.fp32, install(tmp_path / "one", "1.2"))
    row = found["rows"]["tiny"]
    assert row["usable"] and row["right"] and row["ms"] > 0 and row["error"] < 1e-3
    assert found["detail"] == "a plug-in" and found["size"] > 0


def test_another_release_is_another_verdict(nano_models, own_cache, tmp_path):
    without, _ = ask(nano_models.fp32)
    first, _ = ask(nano_models.fp32, install(tmp_path / "one", "1.2"))
    second, _ = ask(nano_models.fp32, install(tmp_path / "two", "1.3"))
    again, _ = ask(nano_models.fp32, install(tmp_path / "three", "1.3"))
    assert "tiny" not in without["rows"]
    assert len({without["key"], first["key"], second["key"]}) == 3 and again["key"] == second["key"]


@pytest.mark.parametrize(
    ("body", "entry", "words"),
    [
        ("raise OSError('libtiny.so: cannot open')", "tiny = tiny_backend:KIND", "OSError: libtiny.so: cannot open"),
        ("KIND = 3", "tiny = tiny_backend:KIND", "is a int, expected a BackendKind"),
    ],
)
def test_a_package_that_is_broken_is_a_row_with_its_reason(nano_models, own_cache, tmp_path, body, entry, words):
    found, _ = ask(nano_models.fp32, install(tmp_path / "one", "1.2", body, entry))
    row = found["rows"]["tiny"]
    assert not row["usable"] and words in row["reason"] and row["reason"].startswith("tiny-backend 1.2 cannot be used")
    assert found["rows"]["onnxruntime"]["right"]


def test_a_name_that_is_taken_stays_with_its_owner(nano_models, own_cache, tmp_path):
    body = PLUGIN.replace('BackendKind("tiny"', 'BackendKind("onnxruntime"')
    found, said = ask(nano_models.fp32, install(tmp_path / "one", "1.2", body))
    assert found["rows"]["onnxruntime"]["right"] and "tiny" not in found["rows"]
    assert "the backend 'onnxruntime' of tiny-backend 1.2" in said and "is left out" in said
