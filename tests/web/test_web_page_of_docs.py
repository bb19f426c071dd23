"""docs/web.md says what is so: its program runs, its figures are the committed ones, its version is the one that is taken."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from conftest import run_command
from web_cases import EXAMPLES, JS, PACKAGES, ROOT, needs, room_of, run_node

from digseg_export.web import RUNTIME, VERSION

TEXT = (ROOT / "docs" / "web.md").read_text(encoding="utf-8")
SAID = TEXT.replace("\n", " ")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.M | re.S)


@needs("onnxruntime-web")
def test_its_first_command_writes_the_folder(tmp_path):
    """With the runtime out of a folder in place of npm's."""
    command = BLOCKS[0][1].splitlines()[0].split()
    done = run_command(*command, "--web-runtime", f"{PACKAGES}/{RUNTIME}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    served = BLOCKS[0][1].splitlines()[1]
    assert served.split()[-1] == "digseg-tiny-fp16-web" and (tmp_path / "digseg-tiny-fp16-web" / "index.html").is_file()
    assert served in done.stdout


@needs("onnxruntime-node", "sharp")
def test_its_program_runs(bundle, tmp_path):
    room = room_of(tmp_path, "onnxruntime-node", "sharp")
    shutil.copytree(bundle, room / "digseg-tiny-fp16")
    shutil.copy(EXAMPLES / "aerial.png", room)
    (program,) = [body for language, body in BLOCKS if language == "js"]
    (room / "program.mjs").write_text(program)
    done = run_node("program.mjs", cwd=room)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip()
    assert "65536" in lines and lines.endswith("[ false ]")


def test_its_figures_are_the_committed_ones():
    found = json.loads((ROOT / "benchmarks" / "results" / "web.json").read_text())
    browser, ours = found["browser"], found["python"]
    assert found["worst_iou"] >= 0.999 and found["command"].startswith(
        f"python benchmarks/web.py --runs {found['runs']}"
    )
    wanted = [
        f"a second question took {browser['second_over_first']:.2f} of the first", f"--runs {found['runs']}`", found["date"],
        f"{browser['first']['median_ms']:.0f} ms", f"{browser['second']['median_ms']:.0f} ms",
        f"{found['browser_over_python']:.1f} times that of Python", f"{ours['first']['median_ms']:.0f} ms",
        f"{found['start_seconds']:.0f} s after its address", f"{found['megabytes']['folder']:.0f} MB",
        f"{found['megabytes']['loaded']:.0f} MB", f"IoU {found['worst_iou']:.3f}",
    ]  # fmt: skip
    for words in wanted:
        assert words in SAID, words


def test_its_version_is_the_one_that_is_taken():
    peers = json.loads((JS / "package.json").read_text())["peerDependencies"]
    assert f"`{RUNTIME}` {VERSION}" in SAID and peers[RUNTIME] == VERSION


def test_its_picture_is_small():
    assert 20_000 < Path(ROOT / "docs" / "web.png").stat().st_size < 200_000
