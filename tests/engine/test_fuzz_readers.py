"""A slice of scripts/fuzz.py: damaged manifests, tensors and graphs are read or refused in one line, within bounds, never
anything else; and what else may happen to a reader is noticed by it."""

import json
import sys
from pathlib import Path

import pytest
from programs import run_program

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "fuzz.py"
posix = pytest.mark.skipif(sys.platform != "linux", reason="its children are forked and have limits of Linux")
BROKEN = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {scripts!r})
import fuzz
fuzz.SECONDS, fuzz.MEMORY = 1, 1 << 29
def odd(room):
    def case(rng, path):
        path.write_bytes(b"x")
        number = int(path.name.removeprefix("odd-"))
        if number == 1: raise KeyError("tag")
        if number == 2: os.abort()
        if number == 3:
            while True: pass
        if number == 4: return bytes(1 << 30) and "read"
        if number == 5: raise fuzz.DigsegError("two\\nlines")
        if number == 6: raise fuzz.DigsegError("one line")
        return "read"
    return case
fuzz.KINDS["odd"] = odd
print(fuzz.json.dumps(fuzz.run("odd", 8, 0, Path(sys.argv[1]))))
"""


@posix
def test_a_slice_of_every_kind_is_read_or_refused(tmp_path):
    done = run_program([sys.executable, SCRIPT, "--count", 50, "--seed", 7, "--only", "manifests,headers,graphs,unhashed,bombs",
                        "--kept", tmp_path, "--json", tmp_path / "f.json"])  # fmt: skip
    assert done.returncode == 0, done.stdout
    kinds = json.loads((tmp_path / "f.json").read_text())["kinds"]
    assert kinds["graphs"]["outcomes"] == {"refused": 50} and kinds["bombs"]["outcomes"] == {"refused": 12}
    for name in ("manifests", "headers", "unhashed"):
        assert "refused" in kinds[name]["outcomes"] and set(kinds[name]["outcomes"]) <= {"read", "refused"}
        assert sum(kinds[name]["outcomes"].values()) == 50
    assert [path.name for path in tmp_path.iterdir()] == ["f.json"]


@posix
def test_other_errors_crashes_hangs_and_memory_are_noticed(tmp_path):
    code = BROKEN.format(scripts=str(SCRIPT.parent))
    done = run_program([sys.executable, "-c", code, tmp_path])
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["outcomes"].pop("read") == 2 and found["outcomes"].pop("refused") == 1
    said = {int(name.removeprefix("odd-")): what for name, what in found["faults"].items()}
    assert said[1] == "KeyError: 'tag'" and said[2] == "the process died of SIGABRT" and said[3] == "no end in 1 s"
    assert said[4].startswith("MemoryError") and said[5] == "an error that is no line of text: 'two\\nlines'"
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"odd-{number}" for number in range(1, 6)]
