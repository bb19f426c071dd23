"""The project's own chain: workflows pinned by commit with the least rights, and archives that anybody can build again."""

import os
import re
import shutil
from pathlib import Path

import pytest
from programs import run_program

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PINNED = re.compile(r"uses: [\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$")


def problems(text: str) -> list[str]:
    """What in a workflow is not pinned by commit, or has more rights than it says."""
    lines = text.splitlines()
    found = [line.strip() for line in lines if "uses:" in line and not PINNED.search(line)]
    found += [] if any(line.startswith("permissions:") for line in lines) else ["no permissions for the whole workflow"]
    kept = text.count("actions/checkout@") - text.count("persist-credentials: false")
    return found + (["a checkout that keeps its credentials"] if kept > 0 else [])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_and_rights_are_said(path):
    assert problems(path.read_text(encoding="utf-8")) == []


def test_what_is_loose_is_found():
    sound = WORKFLOWS[0].read_text(encoding="utf-8")
    assert problems(re.sub(r"checkout@[0-9a-f]{40} # v\S+", "checkout@v4", sound))
    assert problems(sound.replace("permissions:", "rights:"))
    assert problems(sound.replace("persist-credentials: false", "", 1))


def test_an_auditor_of_workflows_finds_nothing():
    zizmor = shutil.which("zizmor")
    if zizmor is None:
        pytest.skip("zizmor is not installed")
    done = run_program(
        [zizmor, "--offline", "--no-progress", ROOT / ".github" / "workflows"], env={**os.environ, "NO_COLOR": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_archive_is_rewritten_to_the_same_bytes_whatever_made_it(tmp_path):
    import tarfile

    made = []
    for number, order in enumerate((("a", "b"), ("b", "a"))):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name in order:
            (folder / name).write_text(name)
            os.utime(folder / name, (number, number))
            (folder / name).chmod(0o600 if number else 0o644)
        with tarfile.open(folder / "x.tar.gz", "w:gz") as tar:
            for name in order:
                tar.add(folder / name, f"x/{name}")
        run = ["python", ROOT / "scripts" / "same_archive.py", folder / "x.tar.gz"]
        assert run_program(run, env={**os.environ, "SOURCE_DATE_EPOCH": "1000000000"}).returncode == 0
        made.append((folder / "x.tar.gz").read_bytes())
    assert made[0] == made[1]
    with tarfile.open(tmp_path / "0" / "x.tar.gz") as tar:
        assert [(m.name, m.mtime, m.mode, m.uid, m.uname) for m in tar] == [
            (f"x/{name}", 1000000000, 0o644, 0, "") for name in "ab"
        ]


@pytest.mark.long
@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="needs the repository")
def test_two_clean_clones_give_the_same_wheel_and_source_archive(tmp_path):
    pytest.importorskip("build")
    environment = {**os.environ, "DIGSEG_BUILD_OPTIONS": "--no-isolation"}
    done = run_program(["bash", ROOT / "scripts" / "reproducible.sh", tmp_path], env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".gz", ".whl"]
