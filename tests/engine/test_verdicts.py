"""Where verdicts are kept: in a folder of this user alone, or nowhere; a home is not needed."""

import logging
import os
import stat
import sys

import numpy as np
import pytest
from programs import run_program

from digseg_engine import Engine
from digseg_engine.runtime import verdicts

posix = pytest.mark.skipif(not hasattr(os, "getuid"), reason="owners and modes of POSIX")


@posix
def test_the_folder_is_made_for_this_user_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("DIGSEG_CACHE", str(tmp_path / "new" / "cache"))
    previous = os.umask(0)
    try:
        path = verdicts.write("k", {"a": 1})
    finally:
        os.umask(previous)
    assert verdicts.read("k") == {"a": 1} and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [p.name for p in path.parent.iterdir()] == ["choice-k.json"]


@posix
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_folder_that_others_may_write_to_is_not_used(own_cache, caplog, mode):
    verdicts.write("k", {"a": 1})
    own_cache.chmod(mode)
    with caplog.at_level(logging.WARNING, "digseg_engine"):
        assert verdicts.read("k") is None and verdicts.write("l", {}) is None
    assert "is not used" in caplog.text and "DIGSEG_CACHE" in caplog.text
    own_cache.chmod(0o755)  # others may look
    assert verdicts.read("k") == {"a": 1}


@posix
def test_a_folder_of_another_user_is_not_used(own_cache, monkeypatch):
    verdicts.write("k", {"a": 1})
    monkeypatch.setattr(os, "getuid", lambda: own_cache.stat().st_uid + 1)
    assert verdicts.read("k") is None and verdicts.write("l", {}) is None


def test_a_verdict_of_any_size_or_depth_is_only_unreadable(own_cache):
    for body in (b"[" * 10**6, b"\xff\xfe", b'"' + b"x" * (2 << 20) + b'"', b"3"):
        (own_cache / "choice-k.json").write_bytes(body)
        assert verdicts.read("k") is None
    (own_cache / "choice-k.json").unlink()
    (own_cache / "choice-k.json").mkdir()
    assert verdicts.read("k") is None and verdicts.write("k", {}) is None


@pytest.mark.parametrize("home", ["/nonexistent", "/proc", "", None])
def test_no_home_no_cache_no_matter(nano_models, home):
    about = {k: v for k, v in os.environ.items() if k not in ("DIGSEG_CACHE", "XDG_CACHE_HOME", "HOME")}
    code = (
        "import os\n"
        "def unknown(uid): raise KeyError(uid)\n"
        "import pwd; pwd.getpwuid = unknown\n"  # a container's user without an entry
        "from digseg_engine import Engine\n"
        f"print(Engine.load({str(nano_models.fp32)!r}).backend.name)"
    )
    done = run_program([sys.executable, "-c", code], env=about if home is None else {**about, "HOME": home})
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


def test_old_verdicts_leave(own_cache, monkeypatch):
    monkeypatch.setattr(verdicts, "KEPT", 3)
    for i in range(6):
        path = verdicts.write(f"k{i}", {})
        os.utime(path, (i, i))
    assert sorted(path.name for path in own_cache.iterdir()) == ["choice-k3.json", "choice-k4.json", "choice-k5.json"]


def test_a_cache_that_cannot_be_used_still_gives_an_engine(nano_models, monkeypatch):
    monkeypatch.setenv("DIGSEG_CACHE", "/proc/nowhere")
    engine = Engine.load(nano_models.fp32)
    assert engine.segment(np.zeros((32, 32, 3), np.uint8), ["red"]).masks.shape == (1, 32, 32)
