"""What tests of the JavaScript module share: Node, npm packages that somebody installed, and a room where a program finds both.

$DIGSEG_TEST_NODE_MODULES names a `node_modules` folder with onnxruntime-node, onnxruntime-web and sharp; tests that need them
skip without: `npm install --ignore-scripts onnxruntime-node@1.30.0 onnxruntime-web@1.30.0 sharp`.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from programs import run_program

ROOT = Path(__file__).resolve().parent.parent.parent
JS = ROOT / "digseg_engine" / "js"
EXAMPLES = ROOT / "examples"
PACKAGES = os.environ.get("DIGSEG_TEST_NODE_MODULES", "")
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="Node is not installed: apt install nodejs, 20 or newer")


def has(*names: str) -> bool:
    return NODE is not None and bool(PACKAGES) and all((Path(PACKAGES) / name).is_dir() for name in names)


def needs(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not has(*names), reason="DIGSEG_TEST_NODE_MODULES names no node_modules with "
                              f"{', '.join(names)}")  # fmt: skip


def room_of(folder: Path, *names: str) -> Path:
    """A folder in which `import "digseg"` is this project's module, with these packages beside it."""
    modules = folder / "node_modules"
    shutil.copytree(JS, modules / "digseg")
    for name in names:
        (modules / name).symlink_to((Path(PACKAGES) / name).resolve(), target_is_directory=True)
    shutil.copy(Path(__file__).with_name("ask.mjs"), folder / "ask.mjs")
    return folder


def run_node(*words: object, stdin: str | None = None, cwd: Path | None = None):
    return run_program([NODE, *words], stdin=stdin, cwd=cwd)


def asked(room: Path, request: dict, names: int = 0):
    """What `ask.mjs` answers to a request; pictures in it are arrays [H, W, 3 or 4]."""
    pictures = []
    for i, picture in enumerate(request.get("pictures", [])):
        path = room / f"picture-{names}-{i}.bin"
        path.write_bytes(np.ascontiguousarray(picture["pixels"]).tobytes())
        height, width = picture["pixels"].shape[:2]
        pictures.append({**{k: v for k, v in picture.items() if k != "pixels"}, "file": str(path), "width": width,
                         "height": height})  # fmt: skip
    done = run_node("ask.mjs", stdin=json.dumps({**request, "pictures": pictures}), cwd=room)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
