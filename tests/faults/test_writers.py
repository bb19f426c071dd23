"""Every file that is kept is written in one place (`digseg_engine/files.py`), and what killed writers leave goes away."""

import ast
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from digseg_engine import files, folders
from digseg_engine.bundle import MARK
from digseg_engine.files import abandoned, owned_name, write_text

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (ROOT / "digseg_engine", ROOT / "export" / "digseg_export", ROOT / "triton_kernels" / "digseg_triton")
WRITES = {"write_text", "write_bytes", "save", "savefig", "save_file", "save_model", "copyfile", "copytree", "tofile", "memmap",
          "save_pretrained", "savez", "NamedTemporaryFile", "mkstemp"}  # fmt: skip
OURS = {"write_text", "write_bytes", "write_json", "write_arrays"}  # called by name they are those of files.py
GUARDS = {"replacing", "writing", "TemporaryDirectory"}
# Functions that are given a path inside such a block by whoever calls them, or write what nobody keeps.
GIVEN = {
    "folded.write_labels_graph": "a bundle's draft", "runtime/peak.forget_peak": "a switch of the system's, no file",
    "model/pretrained._fill": "a checkpoint's draft", "training/record.record_run": "a checkpoint's draft",
    "training/state._fill": "a state's partial folder", "training/state._save_tensors": "a state's partial folder",
    "training/state.link": "a state's partial folder",
    "training/log.add": "a log, one whole row at a time; a torn last row is not read",
    "training/loop._run_steps": "a state, by `state.save_state`",
    "serving/answers.png": "memory, no file", "sharing/example.example_of": "memory, no file",
    "runtime/strips.__init__": "a strip, given by `replacing`",
    "hub/client.fetch": "a part that the next try goes on with, renamed when its hash is right",
    "runtime/pictures._one": "a result, by `saving`", "runtime/asking.draw": "a result, by `saving`",
    "data/batches._mapped": "latents that can be made again, each marked when it is whole",
    "faults._kept_traceback": "a traceback in the system's folder",
    "resumed.answers": "memory, no file", "triton_repository._write_warm_up": "memory, no file",
    "triton_repository._copy": "a repository's draft",
    "kept_stages.place": "a bundle's draft",
    "kept_stages.keep": "parts that count by their hashes, which are written last",
    "conversion.save": "a bundle's draft", "conversion._write": "a bundle's draft", "conversion.fix_shapes": "a bundle's draft",
    "external_data.write_external_data": "a bundle's draft", "external_data._write": "a bundle's draft",
    "few_step.write_graph": "a few-step folder's draft", "few_step_folder.write_configurations": "a few-step folder's draft",
    "parallel_trace._send": "nothing: the null device", "aot._registers_and_stack": "a file that nobody keeps",
}  # fmt: skip


def name_of(call: ast.Call) -> str:
    return (
        call.func.attr
        if isinstance(call.func, ast.Attribute)
        else call.func.id
        if isinstance(call.func, ast.Name)
        else ""
    )


def writes(call: ast.Call) -> bool:
    """Does a call write a file itself?"""
    name = name_of(call)
    if isinstance(call.func, ast.Name) and name in OURS:
        return False
    if name == "open":
        texts = [arg.value for arg in (*call.args, *(k.value for k in call.keywords)) if isinstance(arg, ast.Constant)]
        return any(isinstance(text, str) and text[:1] in "wax" and len(text) <= 3 and text for text in texts)
    return name in WRITES


def unguarded(path: Path, base: Path) -> set[str]:
    """module.function of every write that no `with replacing` or `with writing` stands around."""
    found: set[str] = set()
    module = path.relative_to(base).with_suffix("").as_posix()

    def walk(node: ast.AST, function: str, guarded: bool) -> None:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            function, guarded = node.name, False
        if isinstance(node, ast.With):
            calls = [part.context_expr for part in node.items if isinstance(part.context_expr, ast.Call)]
            guarded = guarded or any(name_of(call) in GUARDS for call in calls)
        if isinstance(node, ast.Call) and writes(node) and not guarded:
            found.add(f"{module}.{function}")
        for child in ast.iter_child_nodes(node):
            walk(child, function, guarded)

    walk(ast.parse(path.read_text(encoding="utf-8")), "", False)
    return found


def test_every_write_goes_through_the_one_writer_or_into_a_draft():
    found = {name for base in SOURCES for path in sorted(base.rglob("*.py")) if path.name != "files.py"
             for name in unguarded(path, base)}  # fmt: skip
    assert sorted(found - set(GIVEN)) == [], "write through digseg_engine.files, or say in GIVEN whose draft it is"
    assert sorted(set(GIVEN) - found) == [], "these write nothing any more"


def test_a_write_of_ones_own_is_found(tmp_path):
    (tmp_path / "m.py").write_text(
        "def a(path):\n    path.open('w')\ndef b(path):\n    with replacing(path) as room:\n        room.write_text('x')\n"
        "def c(path):\n    path.write_bytes(b'x')\ndef d(path):\n    open(path).read()\n    write_text(path, 'x')\n"
    )
    assert unguarded(tmp_path / "m.py", tmp_path) == {"m.a", "m.c"}


KILLED = """
import os, signal, sys
from pathlib import Path
from digseg_engine.files import replacing
from digseg_engine import folders
from digseg_engine.bundle import MARK
with replacing(Path(sys.argv[1]) / "a.txt") as path, folders.writing(Path(sys.argv[1]) / "b", MARK) as draft:
    path.write_text("half")
    (draft / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path, monkeypatch):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=environment, check=False)
    assert done.returncode == -9
    left = sorted(path.name for path in tmp_path.iterdir())
    assert len(left) == 2 and left[0].startswith(".b.tmp-") and left[1].startswith(".digseg-")
    write_text(tmp_path / "c.txt", "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [left[0], "c.txt"]
    folders._forget_drafts(tmp_path / "other")
    folders._forget_drafts(tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.txt"]


def test_what_somebody_still_writes_stays(tmp_path, monkeypatch):
    mine = tmp_path / f".digseg-{owned_name()}.tmp"
    parent = tmp_path / f".digseg-{owned_name().replace(f'-{os.getpid()}-', f'-{os.getppid()}-')}.tmp"
    far = tmp_path / ".digseg-00000000-1-00000000.tmp"
    older = tmp_path / ".digseg-4711-0a1b2c3d.tmp"  # of a release that did not say whose they are
    others = tmp_path / ".digseg-notes.tmp"
    for path in (mine, parent, far, older, others):
        path.touch()
    monkeypatch.setattr(files, "_tidied", set())
    write_text(tmp_path / "a.txt", "x")
    assert {mine, parent, far, older, others} <= set(tmp_path.iterdir())
    os.utime(far, (0, time.time() - files.FORGOTTEN - 60))
    assert abandoned(far) and not abandoned(mine)


def test_a_second_writer_of_a_folder_is_told_of_the_first(tmp_path, capsys):
    first = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        draft = tmp_path / f".b.tmp-{owned_name().replace(f'-{os.getpid()}-', f'-{first.pid}-')}"
        draft.mkdir()
        folders._forget_drafts(tmp_path / "b")
        assert draft.is_dir() and f"process {first.pid} is writing {tmp_path / 'b'} too" in capsys.readouterr().err
    finally:
        first.communicate(b"\n")
    folders._forget_drafts(tmp_path / "b")
    assert not draft.exists() and capsys.readouterr().err == ""


@pytest.mark.parametrize("jump", [-20 * 365 * 86400, 20 * 365 * 86400])
def test_a_clock_that_jumps_takes_nothing_from_those_who_live(tmp_path, monkeypatch, jump):
    mine = tmp_path / f".digseg-{owned_name()}.tmp"
    parents = tmp_path / f".digseg-{owned_name().replace(f'-{os.getpid()}-', f'-{os.getppid()}-')}.tmp"
    for path in (mine, parents):
        path.touch()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + jump)
    monkeypatch.setattr(files, "_tidied", set())
    write_text(tmp_path / "a.txt", "x")
    assert {path.name for path in tmp_path.iterdir()} == {mine.name, parents.name, "a.txt"}


@pytest.mark.parametrize("jump", [-20 * 365 * 86400, 20 * 365 * 86400])
def test_a_clock_that_jumps_takes_no_draft_from_who_fills_it(tmp_path, monkeypatch, jump):
    parents = tmp_path / f".b.tmp-{owned_name().replace(f'-{os.getpid()}-', f'-{os.getppid()}-')}"
    parents.mkdir()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + jump)
    with folders.writing(tmp_path / "b", MARK) as draft:
        write_text(draft / "manifest.json", '{"format": "digseg.bundle/2", "files": {}}')
        assert {path.name for path in tmp_path.iterdir()} == {parents.name, draft.name}
    assert {path.name for path in tmp_path.iterdir()} == {parents.name, "b"}


@pytest.mark.skipif(os.name != "posix", reason="folders are flushed on POSIX")
def test_the_folder_is_flushed_after_the_rename_where_the_system_lets_it(tmp_path, monkeypatch):
    flushed, plain = [], files.flush
    monkeypatch.setattr(
        files, "flush", lambda path: (flushed.append((path, (tmp_path / "a.txt").exists())), plain(path))
    )
    write_text(tmp_path / "a.txt", "x")
    assert [there for path, there in flushed if path == tmp_path] == [True] and len(flushed) == 2

    def refuse(path):
        if path.is_dir():
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(files, "flush", refuse)
    write_text(tmp_path / "a.txt", "y")
    assert (tmp_path / "a.txt").read_text() == "y"


def test_a_folder_is_looked_through_once(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(files, "_tidied", set())
    monkeypatch.setattr(files, "abandoned", lambda path: asked.append(path))
    (tmp_path / ".digseg-00000000-1-00000000.tmp").touch()
    for number in range(3):
        write_text(tmp_path / f"{number}.txt", "x")
    assert len(asked) == 1 and MARK.what == "a bundle"
