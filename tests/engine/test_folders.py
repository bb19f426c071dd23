"""Folders that commands make: only our own are replaced, whatever ends the swap one of them is there, modes are the umask's."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from test_bundle import BODY, made  # noqa: F401

from digseg_engine import folders
from digseg_engine.bundle import MANIFEST, check_target, finish, open_bundle, writing
from digseg_engine.errors import DigsegError, OutputError, UsageError
from digseg_engine.folders import check_output, check_output_file
from digseg_engine.runtime.source import open_source


def write(target, name="only.txt", text="new"):
    with writing(target) as room:
        (room / name).write_text(text)
        finish(room, BODY)


def everything(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_new_bundle_replaces_an_old_one(made):  # noqa: F811
    assert check_target(made)
    write(made)
    assert sorted(p.name for p in made.iterdir()) == [MANIFEST, "only.txt"]
    body = json.loads((made / MANIFEST).read_text())
    (made / MANIFEST).write_text(
        json.dumps({**body, "format": "digseg.bundle/0"})
    )  # of an earlier release, damaged or not
    write(made, text="newer")
    assert open_bundle(made).file("only.txt").read_text() == "newer"
    assert not check_target(made.parent / "fresh")
    (made.parent / "empty").mkdir()
    assert not check_target(made.parent / "empty")
    write(made.parent / "empty")
    assert sorted(p.name for p in made.parent.iterdir()) == ["b", "empty"]


FOREIGN = {
    "photos": {"a.jpg": "precious"},
    "web extension": {MANIFEST: '{"manifest_version": 3, "name": "x"}', "background.js": "precious"},
    "list": {MANIFEST: "[]", "a.txt": "precious"},
    "not json": {MANIFEST: "new", "a.txt": "precious"},
    "deep": {MANIFEST: "[" * 100_000, "a.txt": "precious"},
    "format of others": {MANIFEST: '{"format": "digseg.engine/1", "files": {"a.txt": {}}}', "a.txt": "precious"},
    "no list": {MANIFEST: '{"format": "digseg.bundle/1"}', "a.txt": "precious"},
    "ours and a note": {
        MANIFEST: '{"format": "digseg.bundle/1", "files": {"a.txt": {}}}',
        "a.txt": "",
        "note": "precious",
    },
    "ours in a repository": {MANIFEST: '{"format": "digseg.bundle/1", "files": {}}', ".git": "precious"},
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_not_ours_is_refused_and_stays(tmp_path, kind):
    for name, text in FOREIGN[kind].items():
        (tmp_path / "x").mkdir(exist_ok=True)
        (tmp_path / "x" / name).write_text(text)
    before = everything(tmp_path)
    with pytest.raises(UsageError, match="exists and is not a bundle"):
        write(tmp_path / "x")
    assert everything(tmp_path) == before


def test_what_becomes_foreign_while_we_work_stays(tmp_path):
    def work(room):
        finish(room, BODY)
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "thesis.txt").write_text("precious")

    with pytest.raises(UsageError, match="exists and is not a bundle"), writing(tmp_path / "b") as room:
        work(room)
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == ["b", "b/thesis.txt"]


@pytest.mark.parametrize(
    ("where", "words"),
    [(".", "the working directory or a folder around it"), ("..", "the working directory or a folder around it"),
     ("/", "the working directory or a folder around it"), ("", "the working directory or a folder around it"),
     ("file", "it is not a folder"), ("file/b", "not a writable directory"), ("n" * 300, "cannot be written"),
     ("zero\0byte", "cannot be written"), ("loop/b", "cannot be written")],
)  # fmt: skip
def test_places_that_cannot_be_used_are_refused_before_work(tmp_path, monkeypatch, where, words):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("file").write_text("x")
    Path("loop").symlink_to("loop")
    with pytest.raises(UsageError) as caught, writing(Path(where)):
        pytest.fail("work began")
    assert words in str(caught.value)
    assert sorted(p.name for p in Path().iterdir()) == ["file", "loop"]


def test_nothing_is_written_into_a_bundle_which_would_be_refused_then(made):  # noqa: F811
    for use in (check_output, check_output_file, check_target):
        with pytest.raises(UsageError, match=r"is inside .*, which holds what its manifest lists and nothing else"):
            use(made / "deeper" / "out")
    there = everything(made)
    with pytest.raises(UsageError, match="is inside"):
        check_output(made)
    check_output(made.parent / "out")
    assert everything(made) == there
    (made / MANIFEST).write_text('{"name": "an extension"}')  # of somebody else
    check_output(made / "out")


def test_behind_a_link_the_bundle_is_replaced_and_the_link_stays(made, tmp_path):  # noqa: F811
    (tmp_path / "current").symlink_to("b")
    write(tmp_path / "current")
    assert (tmp_path / "current").is_symlink() and open_bundle(made).file("only.txt").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "current"]


@pytest.mark.parametrize("failure", [PermissionError(13, "Permission denied"), KeyboardInterrupt()])
def test_a_failed_swap_puts_the_old_one_back(made, monkeypatch, failure):  # noqa: F811
    before = everything(made)
    rename = Path.rename

    def fails(self, target):
        if ".tmp-" in self.name and "tmp-old" not in self.name:
            raise failure
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else OutputError):
        write(made)
    assert everything(made) == before and [p.name for p in made.parent.iterdir()] == ["b"]


@pytest.mark.parametrize("locks", [True, False])
@pytest.mark.parametrize("there", [True, False])
def test_of_several_writers_one_stays_and_the_others_are_whole_or_refused(tmp_path, monkeypatch, locks, there):
    if not locks:
        monkeypatch.setattr(folders, "CAN_LOCK", False)
    for trial in range(6):
        target, said = tmp_path / str(trial) / "b", []
        target.parent.mkdir()
        if there:
            write(target, text="old")
        together = threading.Barrier(4)

        def run(number, target=target, said=said, together=together):
            try:
                with writing(target) as room:
                    (room / "only.txt").write_text(str(number))
                    finish(room, BODY)
                    together.wait()
                said.append("written")
            except DigsegError:
                said.append("refused")

        threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(said) == 4 and (not locks or said == ["written"] * 4)
        assert open_bundle(target).file("only.txt").read_text() in "0123"
        assert [p.name for p in target.parent.iterdir()] == ["b"]


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_mode_that_the_umask_gives(tmp_path, umask, mode):
    code = f"""
import os, pathlib, sys
os.umask({umask})
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_bundle import BODY
from digseg_engine.bundle import finish, writing
with writing(pathlib.Path({str(tmp_path / "b")!r})) as room:
    os.close(os.open(room / "weights.data", os.O_CREAT | os.O_WRONLY, 0o600))
    (room / "note.txt").touch(mode=0o666)
    finish(room, BODY)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "b").iterdir()} == {mode}


KILLED = """
import os, pathlib, sys
sys.path.insert(0, {tests!r})
from test_folders import write
rename = pathlib.Path.rename
def kill(self, target):
    if "tmp-old" in str(target):
        rename(self, target)
        os._exit(9)
    return rename(self, target)
pathlib.Path.rename = kill
write(pathlib.Path({target!r}))
"""


@pytest.mark.parametrize("next_one", ["reader", "engine", "writer"])
def test_a_kill_between_the_two_moves_of_a_swap_is_mended_by_whoever_comes_next(made, next_one):  # noqa: F811
    before = everything(made)
    code = KILLED.format(tests=str(Path(__file__).parent), target=str(made))
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    assert not made.exists()
    if next_one == "writer":
        with writing(made) as room:
            assert everything(made) == before  # there again before the work begins
            finish(room, BODY)
    else:
        opened = open_source(made).bundle if next_one == "engine" else open_bundle(made)
        assert opened.folder == made and everything(made) == before
    write(made)
    assert open_bundle(made).file("only.txt").is_file()
    assert not [path for path in made.parent.iterdir() if "tmp-old" in path.name]


def test_what_a_kill_after_the_swap_left_behind_is_removed_by_the_next_writer(made):  # noqa: F811
    leftover = made.with_name(f".{made.name}.tmp-old-0123abcd")
    leftover.mkdir()
    (leftover / "weights.data").write_text("older")
    write(made)
    assert not leftover.exists() and open_bundle(made).file("only.txt").is_file()
