"""The one writer: what it promises about endings, modes, names and memory layout."""

from __future__ import annotations

import os
import stat

import numpy as np
import pytest
from safetensors.numpy import load_file

from digseg_engine.errors import OutputError
from digseg_engine.files import replacing, write_arrays, write_json, write_text


def test_a_file_appears_whole_with_the_mode_of_the_umask(tmp_path):
    old = os.umask(0o022)
    try:
        with replacing(tmp_path / "a.txt") as path:
            path.unlink()  # a library may put a file of its own, with a mode of its own, in the temporary place
            path.touch(mode=0o600)
            path.write_text("whole")
            assert not (tmp_path / "a.txt").exists()
    finally:
        os.umask(old)
    assert (tmp_path / "a.txt").read_text() == "whole"
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o644
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("ending", [KeyboardInterrupt, ValueError, SystemExit])
def test_an_interrupted_writer_leaves_the_old_file_and_nothing_else(tmp_path, ending):
    write_text(tmp_path / "a.txt", "old")

    def write():
        with replacing(tmp_path / "a.txt") as path:
            path.write_text("ne")
            raise ending

    with pytest.raises(ending):
        write()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_what_the_file_system_refuses_is_one_error_naming_the_file(tmp_path):
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "file").touch()
    for target in (tmp_path / "folder.json", tmp_path / ("n" * 300), tmp_path / "gone" / "a", tmp_path / "file" / "a"):
        with pytest.raises(OutputError, match="cannot write") as caught:
            write_json(target, {"a": 1})
        assert str(target) in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.json"]


def test_the_longest_name_that_the_file_system_takes_is_written(tmp_path):
    write_text(tmp_path / ("n" * 255), "ok")
    assert (tmp_path / ("n" * 255)).read_text() == "ok"


@pytest.mark.parametrize("make", [lambda a: a.transpose(2, 0, 1), lambda a: a[:, ::2], np.asfortranarray, lambda a: a])
def test_arrays_of_any_memory_layout_come_back_equal(tmp_path, make):
    array = make(np.arange(60, dtype=np.float32).reshape(3, 4, 5))
    write_arrays(tmp_path / "a.safetensors", {"a": array})
    np.testing.assert_array_equal(load_file(tmp_path / "a.safetensors")["a"], array)
