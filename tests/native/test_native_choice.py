"""The C library's choice of a backend is kept between starts, with the graphs optimised for this processor."""

import json
import shutil

import numpy as np
import pytest
from native_fixtures import *  # noqa: F403

from digseg_engine.worlds.scenes import scene

PROMPTS = ["road", "something that is green"]


@pytest.fixture
def start(library, native_bundle, tmp_path):
    """start(cache=..., bundle=...) -> (log lines, logits) of a fresh engine that chooses its backend itself."""
    from native_library import LOG, NativeEngine

    rgb = np.ascontiguousarray(scene(9, "aerial", 96, "demo").image)

    def begin(cache=tmp_path / "cache", bundle=native_bundle, **options):
        lines = []
        log = LOG(lambda user, level, text: lines.append(text.decode()))
        with NativeEngine(library, bundle, cache=str(cache).encode(), log=log, **options) as engine:
            return lines, engine.segment(rgb, PROMPTS).logits

    return begin


def known(lines):
    return any("as chosen before" in line for line in lines)


def test_the_second_start_knows_and_gives_the_same_logits(start, tmp_path):
    first, wanted = start()
    second, got = start()
    assert not known(first) and known(second)
    assert np.array_equal(got, wanted)
    names = sorted(path.name.split("-")[0] for path in (tmp_path / "cache").iterdir())
    assert names == ["choice", "graph", "graph"]
    assert not known(start(threads=2)[0])  # another question


@pytest.mark.parametrize("harm", ["verdict cut", "verdict of another library", "graph gone"])
def test_what_was_kept_and_is_damaged_is_made_again(start, tmp_path, harm):
    _, wanted = start()
    (verdict,) = (tmp_path / "cache").glob("choice-native-*.json")
    graph = next((tmp_path / "cache").glob("graph-*.segmenter.ort"))
    if harm == "verdict cut":
        verdict.write_bytes(verdict.read_bytes()[:30])
    elif harm == "graph gone":
        graph.unlink()
    else:
        verdict.write_text(json.dumps({"backend": "quick"}))
    lines, got = start()
    assert not known(lines) and np.array_equal(got, wanted)
    assert known(start()[0]) and graph.is_file()


def test_a_changed_graph_is_not_opened(start, tmp_path):
    _, wanted = start()
    graph = next((tmp_path / "cache").glob("graph-*.segmenter.ort"))
    body = bytearray(graph.read_bytes())
    body[len(body) // 2] ^= 1
    graph.write_bytes(body)
    _, got = start()  # the bundle's own graph runs instead
    assert np.array_equal(got, wanted) and not graph.exists()
    assert not known(start()[0]) and graph.is_file()


def test_another_bundle_is_another_choice(start, native_bundle, tmp_path):
    start()
    shutil.copytree(native_bundle, tmp_path / "b")
    assert known(start(bundle=tmp_path / "b")[0])  # the same files elsewhere
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    del manifest["files"]["precision.json"]
    (tmp_path / "b" / "manifest.json").write_text(json.dumps(manifest))
    assert not known(start(bundle=tmp_path / "b")[0])


def test_nothing_is_kept_where_nothing_may_be(start, tmp_path, monkeypatch):
    monkeypatch.setenv("DIGSEG_CACHE", str(tmp_path / "elsewhere"))
    (tmp_path / "a file").touch()
    wanted = start()[1]
    for cache in ("", tmp_path / "a file" / "below"):
        for _ in range(2):
            lines, got = start(cache=cache)
            assert not known(lines) and np.array_equal(got, wanted)
    assert not (tmp_path / "elsewhere").exists()
