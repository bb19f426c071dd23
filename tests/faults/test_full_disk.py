"""A disk that fills up under each writer: one line of ours, and the older file or folder is as it was."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
ROOT = Path(__file__).resolve().parents[2]
LIMITED = 'ulimit -f {blocks}; exec "$@"'  # of 512 or 1,024 bytes
START = """
import sys
from pathlib import Path
from digseg_engine.errors import DigsegError
room, body = Path(sys.argv[1]), sys.argv[2].encode() * 40_000
try:
"""
END = """
except DigsegError as error:
    print(f"{type(error).__name__}: {error}")
    sys.exit(error.exit_code)
"""
WRITERS = {
    "file": "    from digseg_engine.files import write_bytes\n    write_bytes(room / 'a.bin', body)",
    "arrays": "    import numpy\n    from digseg_engine.files import write_arrays\n"
    "    write_arrays(room / 'a.safetensors', {'a': numpy.frombuffer(body, numpy.uint8)})",
    "bundle": "    from digseg_engine.bundle import MARK\n    from digseg_engine.files import write_bytes\n"
    "    from digseg_engine.folders import writing\n    with writing(room / 'b', MARK) as draft:\n"
    "        write_bytes(draft / 'a.onnx', body)\n"
    '        write_bytes(draft / \'manifest.json\', b\'{"format": "digseg.bundle/2", "files": {"a.onnx": {}}}\')',
    "engine": "    import os\n    os.environ['DIGSEG_CACHE'] = str(room / 'cache')\n"
    "    from digseg_engine.contract import MASK_DECODER\n"
    "    from digseg_engine.runtime.engine_store import EngineKey, store\n"
    "    store(MASK_DECODER, body, EngineKey('g', '10', '12', 'gpu', '8.9', '{}', 'fp16'), {})",
    "verdict": "    import os\n    os.environ['DIGSEG_CACHE'] = str(room / 'cache')\n"
    "    from digseg_engine.runtime import verdicts\n"
    "    written = verdicts.write('k', {'a': body.decode()})\n"
    "    if written is None:\n        raise DigsegError('nothing was kept, which only costs a new measurement')",
}


def write(room, name, letter, blocks=None):
    words = [sys.executable, "-c", START + WRITERS[name] + END, str(room), letter]
    words = words if blocks is None else ["bash", "-c", LIMITED.format(blocks=blocks), "bash", *words]
    return subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)


def files_of(room):
    return {path.relative_to(room): path.read_bytes() for path in room.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", WRITERS)
def test_what_was_there_is_as_before(tmp_path, name):
    assert write(tmp_path, name, "o").returncode == 0
    before = files_of(tmp_path)
    assert before and any(b"o" * 40_000 in body for body in before.values())
    done = write(tmp_path, name, "n", blocks=8)
    (line,) = done.stdout.splitlines()
    assert done.returncode == 1 and done.stderr == "" and "Error: " in line, done
    assert files_of(tmp_path) == before
    assert write(tmp_path, name, "n").returncode == 0
    assert any(b"n" * 40_000 in body for body in files_of(tmp_path).values())


@pytest.mark.parametrize("name", ["file", "bundle"])
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that nobody can write to")
def test_a_folder_that_cannot_be_written_to(name):
    done = write(Path("/proc"), name, "n")
    (line,) = done.stdout.splitlines()
    assert done.returncode in (1, 2) and done.stderr == "" and "/proc" in line and "Error: " in line
