"""The containers: linted, built of what they need alone, and their server's rules are the server's."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from programs import run_program

ROOT = Path(__file__).resolve().parent.parent
IMAGE = os.environ.get("DIGSEG_TEST_IMAGE", "")
FILES = sorted((ROOT / "containers").glob("*.Dockerfile"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_linter_finds_nothing(path):
    linter = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if linter is None:
        pytest.skip("hadolint is not installed")
    done = run_program([linter, path])
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_runs_is_not_root_and_asks_for_a_token(path):
    from digseg_engine.commands.main import command_named
    from digseg_engine.errors import UsageError
    from digseg_engine.serving.server import Listening

    text = path.read_text()
    last = text[text.rindex("FROM ") :]
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", last, re.M) and "HEALTHCHECK" in last
    assert 'ENTRYPOINT ["digseg", "serve", "--host", "0.0.0.0"]' in last
    with pytest.raises(UsageError, match="lets others reach this server"):
        Listening(host="0.0.0.0").check()
    port = next(option.default for option in command_named("serve").options if option.name == "port")
    assert f"EXPOSE {port}" in last and f"127.0.0.1:{port}/readyz" in last
    assert "COPY . ." not in last  # the project's sources stay behind


def test_both_differ_in_what_they_must():
    cpu, nvidia = (set(path.read_text().splitlines()) for path in FILES)
    only = {line.split()[0].rstrip("=") for line in cpu ^ nvidia if not line.startswith("#")}
    assert [path.name for path in FILES] == ["cpu.Dockerfile", "nvidia.Dockerfile"]
    assert only <= {"ARG", "DIGSEG_CACHE=/tmp/digseg", "NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_DRIVER_CAPABILITIES=compute,utility",
                    "HEALTHCHECK"}  # fmt: skip
    extras = (ROOT / "pyproject.toml").read_text()
    for line in cpu | nvidia:
        if line.startswith("ARG EXTRAS="):
            assert all(f"\n{name} = [" in extras for name in line.partition("=")[2].split(","))


def test_only_what_is_installed_is_sent_to_a_build():
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert all((ROOT / name).exists() for name in kept)
    needed = re.findall(r'"((?:export|triton_kernels)/[^"]+)"', (ROOT / "pyproject.toml").read_text())
    assert kept >= {"pyproject.toml", "constraints.txt", "digseg_engine", *(name.split("/")[0] for name in needed)}
    assert any(fnmatch.fnmatch("a/__pycache__", line) for line in lines)


@pytest.mark.long
@pytest.mark.skipif(
    shutil.which("buildah") is None or not os.environ.get("DIGSEG_TEST_IMAGE"), reason="buildah and DIGSEG_TEST_IMAGE"
)
def test_the_image_is_built_and_serves_from_a_read_only_root():
    """DIGSEG_TEST_IMAGE names what to build on."""
    done = run_program(["bash", ROOT / "containers" / "check.sh", IMAGE])
    assert done.returncode == 0 and "built on" in done.stdout, done.stdout + done.stderr
