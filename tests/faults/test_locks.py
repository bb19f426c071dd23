"""One writer at a time: the second waits and knows for whom; the lock goes with its holder, and with nobody else."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from programs import LIMIT

from digseg_engine import locks
from digseg_engine.contract import MASK_DECODER
from digseg_engine.locks import Holder, alone
from digseg_engine.runtime.engine_store import EngineKey, building

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs flock")
ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import os, sys, time
from pathlib import Path
from digseg_engine.locks import alone
with alone(Path(sys.argv[1])):
    if sys.argv[2] == "fork" and os.fork() == 0:
        os.write(1, b"forked %d\\n" % os.getpid())  # at once: two processes write to one pipe
        time.sleep(60)
    os.write(1, b"held\\n")
    time.sleep(60)
"""
EXPORT = """
import sys, time
from pathlib import Path
from digseg_export.kept_stages import one_export, waits_for
target = Path(sys.argv[1])
with one_export(target, lambda who: waits_for(target, who)):
    print("in", flush=True)
    sys.stdin.read()
"""


def program(code, *words):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "export"), os.environ.get("PYTHONPATH", "")]),
    }
    return subprocess.Popen([sys.executable, "-c", code, *map(str, words)], env=environment, text=True,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


def test_a_killed_holder_has_it_no_more_and_its_copies_never_had(tmp_path):
    first = program(HOLD, tmp_path / "lock", "fork")
    said = dict(
        line.split() if " " in line.strip() else (line.strip(), "")
        for line in (first.stdout.readline(), first.stdout.readline())
    )
    try:
        assert set(said) == {"held", "forked"}
        first.send_signal(signal.SIGKILL)
        first.wait()
        began = time.monotonic()
        with alone(tmp_path / "lock", lambda who: pytest.fail(f"waits for {who}")) as held:
            assert held and time.monotonic() - began < 30
    finally:
        os.kill(int(said["forked"]), signal.SIGKILL)
        first.communicate()


def test_a_copy_that_leaves_the_block_closes_no_file_of_its_own(tmp_path):
    code = """
import os, sys
from pathlib import Path
from digseg_engine.locks import alone
with alone(Path(sys.argv[1])):
    if (child := os.fork()) == 0:
        mine = os.open(sys.argv[1], os.O_RDONLY)  # gets the number of the lock's handle, which the copy has closed
if child == 0:
    os.fstat(mine)
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = program(code, tmp_path / "lock")
    _, said = done.communicate(timeout=LIMIT)
    assert done.returncode == 0, said


def test_the_second_one_waits_and_is_told_who_has_it(tmp_path):
    said, order = [], []

    def second():
        with alone(tmp_path / "lock", lambda who: (said.append(who), told.set())):
            order.append("second")

    told, thread = threading.Event(), threading.Thread(target=second)
    with alone(tmp_path / "lock") as held:
        thread.start()
        assert held and told.wait(30)
        order.append("first")
    thread.join(30)
    me = Holder.me()
    assert order == ["first", "second"] and said[0].startswith(f"process {os.getpid()} on {me.host}, since 20")


def test_a_lock_file_that_its_holder_removed_is_made_anew(tmp_path):
    told, entered = threading.Event(), threading.Event()

    def second():
        with alone(tmp_path / "lock", lambda who: told.set()):
            entered.set()
            assert (tmp_path / "lock").is_file()

    thread = threading.Thread(target=second)
    with alone(tmp_path / "lock"):
        thread.start()
        assert told.wait(30)
        (tmp_path / "lock").unlink()
    assert entered.wait(30)
    thread.join(30)


@pytest.mark.parametrize("body", [b"", b"{}", b'{"host": 1, "pid": 2, "since": "x"}', b"[" * 4096, b"\xff"])
def test_a_lock_file_that_says_nothing_is_another_process(tmp_path, body):
    (tmp_path / "lock").write_bytes(body)
    assert Holder.of(tmp_path / "lock") is None


def test_without_locks_nobody_waits(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_locked", lambda path, waits: None)
    with alone(tmp_path / "lock") as held, alone(tmp_path / "lock") as again:
        assert not held and not again


def test_a_second_export_into_a_folder_waits_and_says_for_whom(tmp_path):
    first, second = program(EXPORT, tmp_path / "b"), None
    try:
        assert first.stdout.readline() == "in\n"
        second = program(EXPORT, tmp_path / "b")
        line = second.stderr.readline()
        assert line.startswith(f"digseg-export: note: process {first.pid} on ") and ", since 20" in line
        assert f"is writing {tmp_path / 'b'}; waiting until it ends" in line
        first.communicate("")
        assert second.stdout.readline() == "in\n"
        second.communicate("")
        assert second.returncode == 0 and list(tmp_path.iterdir()) == []
    finally:
        for process in (first, second):
            if process is not None and process.poll() is None:
                process.kill()
                process.communicate()


def test_an_engine_is_built_by_one_process_at_a_time(own_cache, caplog):
    own_cache.chmod(0o700)
    key, order = EngineKey("g", "10", "12", "gpu", "8.9", "{}", "fp16"), []
    started = threading.Event()

    def second():
        started.set()
        with building(key, MASK_DECODER):
            order.append("second")

    thread = threading.Thread(target=second)
    with caplog.at_level("INFO", "digseg_engine"), building(key, MASK_DECODER):
        thread.start()
        started.wait(30)
        until = time.monotonic() + 30
        while "is building the engine of mask_decoder.onnx" not in caplog.text and time.monotonic() < until:
            time.sleep(0.01)
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"] and f"process {os.getpid()} on " in caplog.text
