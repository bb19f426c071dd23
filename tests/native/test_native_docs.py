"""The pages on embedding and Jetson: what they name exists, and the one-line build works."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from native_fixtures import *  # noqa: F403
from native_fixtures import slow
from PIL import Image
from programs import run_program

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "docs" / name for name in ("embedding.md", "jetson.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_named_on_the_page_exist(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / target).exists(), target
    for target in re.findall(r"\b(?:tests|kernels|scripts|benchmarks)/[\w/.-]+\.(?:py|sh|cpp|cmake)\b", text):
        assert (ROOT / target).exists(), target


def test_statuses_and_backends_on_the_page_are_those_of_the_library():
    text, header = PAGES[0].read_text(), (ROOT / "kernels/include/digseg/digseg.h").read_text()
    for name in re.findall(r"`(DIGSEG_[A-Z_]+)`", text):
        assert name in header or name == "DIGSEG_ONNXRUNTIME", name
    listed = re.search(r"names\{(.*?)\}", (ROOT / "kernels/src/choice.cpp").read_text())[1]
    assert set(re.findall(r'"(.*?)"', listed)) == set(re.findall(r"^\| `([\w-]+)` \|", text, re.M))


@slow
@pytest.mark.slow
def test_the_build_script_leaves_a_library_and_masks(native_bundle, tmp_path):
    if shutil.which("cmake") is None or shutil.which("g++") is None:
        pytest.skip("no cmake or g++ here")
    environment = {**os.environ, "DIGSEG_BUNDLE": str(native_bundle), "DIGSEG_NATIVE_BUILD": str(tmp_path / "build")}
    done = run_program(["bash", ROOT / "scripts/native.sh", tmp_path], env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "native/include/digseg/digseg.h").is_file() and list(
        tmp_path.glob("native/lib*/**/libdigseg.so")
    )
    masks = sorted(tmp_path.glob("out/native.*.png"))
    assert len(masks) == 3 and all(np.asarray(Image.open(path)).shape == (256, 256) for path in masks)
