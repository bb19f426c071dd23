"""A wrong word is refused at once: with its exit code, before any library of seconds is imported."""

import json
import sys

import pytest
from PIL import Image
from programs import run_program

HEAVY = ("torch", "diffusers", "transformers", "matplotlib")
SCRIPT = """
import contextlib, io, json, sys
from digseg_engine.cli import main as digseg
from digseg_export.cli import main as export
rows, known = [], set()
for words in json.loads(sys.argv[1]):
    said, sys.argv = io.StringIO(), words
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = (export if words[0] == "digseg-export" else digseg)()
        except SystemExit as end:
            code = end.code
    heavy = {name for name in HEAVY if name in sys.modules}
    rows.append([code, said.getvalue(), sorted(heavy - known)])
    known |= heavy
print(json.dumps(rows))
""".replace("HEAVY", repr(HEAVY))
REFUSED = {  # the words, and what the one line says
    "digseg-export --precision nope": "unknown precision 'nope'",
    "digseg-export nowhere": "checkpoint nowhere not found",
    "digseg-export labelled": "labelled is not a DiGSeg checkpoint",
    "digseg-export -o labelled": "labelled exists",
    "digseg-export --imgsz 0": "H = 0 (rows of pixels); expected 32 to",
    "digseg-export --imgsz 100": "multiple of",
    "digseg-export --prompts 0": "--prompts is 0",
    "digseg-export --calibration nowhere": "nowhere not found",
    "digseg-export --verify-data nowhere": "nowhere not found",
    "digseg-export --layout diffusers --precision int8": "--precision int8 does not apply",
    "digseg-export --layout diffusers -o labelled": "labelled exists",
    "digseg-export --layout diffusers nowhere": "checkpoint nowhere not found",
    "digseg train --init nowhere": "nowhere is neither a directory nor a hub id",
    "digseg train --init digseg-tiny --data nowhere": "neither scenes nor a folder",
    "digseg train --init digseg-tiny": "--data is missing; expected what to train on: digseg train --init digseg-tiny --data",
    "digseg distill digseg-tiny": "--data is missing; expected what to train on: digseg distill digseg-tiny --data",
    "digseg distill nowhere": "nowhere is neither a directory nor a hub id",
    "digseg eval --model nowhere": "--model nowhere is not a folder",
    "digseg eval --data nowhere": "neither scenes nor a folder",
    "digseg doctor --bundle nowhere": "bundle nowhere not found",
    "digseg segment labelled/a.png -p road --refine 1": "for the bundled model leave --refine out",
    "digseg segment nowhere.png -p road": "nowhere.png: file not found",
    "digseg data nowhere": "nowhere is not a folder",
    "digseg scenes --domain nope": "unknown scene domain 'nope'",
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """{words: [exit code, what was said, heavy modules]}, all asked in one process, one after the other."""
    room = tmp_path_factory.mktemp("early")
    (room / "labelled").mkdir()
    (room / "labelled" / "mine.txt").touch()
    Image.new("RGB", (8, 8)).save(room / "labelled" / "a.png")
    done = run_program([sys.executable, "-c", SCRIPT, json.dumps([words.split() for words in REFUSED])], cwd=room)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in room.iterdir()} == {"labelled"}
    return dict(zip(REFUSED, json.loads(done.stdout.splitlines()[-1])))


@pytest.mark.parametrize("words", REFUSED)
def test_refused_before_anything_heavy(answers, words):
    code, said, heavy = answers[words]
    errors = [line for line in said.splitlines() if ": error: " in line]
    assert code in (1, 2) and len(errors) == 1 and REFUSED[words] in errors[0], said
    assert heavy == []
