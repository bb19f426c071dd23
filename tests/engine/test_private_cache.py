"""Machine code comes from this user's own closed folder, is read once, and is never what somebody else put there."""

import hashlib
import json
import os
import sys
from pathlib import Path

import pytest
from programs import run_program

from digseg_engine.contract import MASK_DECODER
from digseg_engine.errors import BackendError
from digseg_engine.runtime import engine_store, private_cache
from digseg_engine.runtime.engine_store import EngineKey, engine_path, explain, load_plan, store

ROOT = Path(__file__).resolve().parent.parent.parent
KEY = EngineKey("g", "10.3", "12.6", "GPU", "8.7", "p", "fp16")


@pytest.fixture
def plan():
    return store(MASK_DECODER, b"plan", KEY, {"seconds": 1})


def test_folders_and_files_are_closed_to_others_whatever_the_umask(monkeypatch, own_cache):
    old = os.umask(0)
    try:
        path = store(MASK_DECODER, b"plan", KEY, {})
    finally:
        os.umask(old)
    modes = [at.stat().st_mode & 0o777 for at in (own_cache / "engines", path.parent, path, path.with_suffix(".json"))]
    assert modes == [0o700, 0o700, 0o600, 0o600]
    assert load_plan(path, KEY) == b"plan"


def test_the_bytes_that_are_used_are_the_bytes_that_were_hashed(plan, monkeypatch):
    """A file that is changed between two reads must not get in: there is one read."""
    reads = []
    plain = private_cache.read_private

    def once(path, most):
        reads.append(path.name)
        body = plain(path, most)
        path.write_bytes(b"evil")  # whoever reads again gets this
        return body

    monkeypatch.setattr(engine_store, "read_private", once)
    assert load_plan(plan, KEY) == b"plan" and reads == ["mask_decoder.json", "mask_decoder.plan"]


@pytest.mark.parametrize("which", ["mask_decoder.plan", "mask_decoder.json", "."])
def test_what_others_can_write_or_point_to_is_refused(plan, which, tmp_path):
    at = plan.parent / which
    os.chmod(at, 0o777)
    with pytest.raises(BackendError, match="can be written by others"):
        load_plan(engine_path(KEY, MASK_DECODER), KEY)
    os.chmod(at, 0o700)
    at = at.resolve()
    at.rename(tmp_path / "elsewhere")
    at.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BackendError, match=r"is a link|cannot be opened"):
        load_plan(engine_path(KEY, MASK_DECODER), KEY)


def test_another_users_file_is_refused(plan, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(BackendError, match="belongs to another user"):
        load_plan(plan, KEY)


HOSTILE = ["", "[]", "null", "{", '{"format": "digseg.engine/1"}', "[" * 100_000, '{"format": []}', "\xff",
           '{"format": "digseg.engine/1", "key": [], "sha256": "", "size": 4}',
           '{"format": "digseg.engine/1", "key": {}, "sha256": 4, "size": 4}',
           '{"format": "digseg.engine/1", "key": {}, "sha256": ""}']  # fmt: skip


@pytest.mark.parametrize("body", HOSTILE)
def test_a_hostile_sidecar_is_one_line(plan, body):
    plan.with_suffix(".json").write_bytes(body.encode("latin-1"))
    with pytest.raises(BackendError, match="cannot be read"):
        load_plan(plan, KEY)
    (line,) = explain(MASK_DECODER, KEY)
    assert "cannot be read" in line and "\n" not in line


def test_sizes_are_bounded(plan, monkeypatch):
    monkeypatch.setattr(engine_store, "LARGEST_PLAN", 3)
    with pytest.raises(BackendError, match="4 bytes, at most 3"):
        load_plan(plan, KEY)
    body = json.loads(plan.with_suffix(".json").read_text())
    assert body["sha256"] == hashlib.sha256(b"plan").hexdigest() and body["size"] == 4


def test_other_bytes_of_the_same_length_are_damage(plan):
    plan.write_bytes(b"pl4n")
    with pytest.raises(BackendError, match="damaged"):
        load_plan(plan, KEY)


def test_a_small_plan_takes_little_memory_to_read(plan, own_cache):
    """A board has 8 GB: no room is made for the largest plan there could be."""
    code = f"""
import resource
from pathlib import Path
from digseg_engine.runtime.engine_store import EngineKey, load_plan
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
print(load_plan(Path({str(plan)!r}), {KEY!r}))
"""
    done = run_program([sys.executable, "-c", code], cwd=ROOT)
    assert done.stdout.strip() == "b'plan'", done.stderr
