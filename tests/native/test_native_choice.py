"""The C library's choice of a backend is kept between starts, with the graphs optimised for this processor."""

import json
import os
import shutil
import threading

import numpy as np
import pytest
from native_fixtures import *  # noqa: F403
from profiled import write_shapes
from programs import run_program

from digseg_engine.contract import PRESENCE, graphs_of
from digseg_engine.locks import alone
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


def test_the_second_start_knows_and_gives_the_same_logits(start, native_bundle, tmp_path):
    first, wanted = start()
    second, got = start()
    assert not known(first) and known(second)
    assert np.array_equal(got, wanted)
    names = sorted(path.name.split("-")[0] for path in (tmp_path / "cache" / "native").iterdir())
    assert names == ["choice", *["graph"] * len(graphs_of((native_bundle / PRESENCE.file).exists()))]
    assert not known(start(threads=2)[0])  # another question


def test_one_chooses_and_the_others_wait_for_its_answer(start, library, native_bundle, tmp_path):
    from native_library import LOG, NativeEngine

    _, wanted = start()
    room = tmp_path / "cache" / "native"
    (choice,) = room.glob("choice-*.json")
    turn, aside = room / choice.stem.replace("choice-", "turn-"), tmp_path / "aside"
    assert not turn.exists()
    choice.rename(aside)
    lines, told = [], threading.Event()
    log = LOG(lambda user, level, text: (lines.append(text.decode()), told.set()) if b"is choosing" in text else None)

    def second():
        with NativeEngine(library, native_bundle, cache=str(tmp_path / "cache").encode(), log=log) as engine:
            answers.append(engine.segment(np.ascontiguousarray(scene(9, "aerial", 96, "demo").image), PROMPTS).logits)

    answers, thread = [], threading.Thread(target=second)
    with alone(turn) as held:
        thread.start()
        assert held and told.wait(300)
        before = {path.name: path.stat().st_mtime_ns for path in room.glob("graph-*")}
        aside.rename(choice)  # the answer of the one that has the turn
    thread.join(300)
    assert np.array_equal(answers[0], wanted) and lines[0].startswith(f"process {os.getpid()} on ")
    assert {path.name: path.stat().st_mtime_ns for path in room.glob("graph-*")} == before  # nothing was made again
    assert not turn.exists()


def test_the_turn_of_a_killed_process_is_free(start, tmp_path):
    start()
    room = tmp_path / "cache" / "native"
    (choice,) = room.glob("choice-*.json")
    turn = room / choice.stem.replace("choice-", "turn-")
    turn.write_text('{"host": "here", "pid": 1, "since": "2026-01-01 00:00:00"}')
    choice.unlink()
    lines, _ = start()
    assert not known(lines) and not any("is choosing" in line for line in lines) and not turn.exists()


@pytest.mark.parametrize("harm", ["verdict cut", "verdict of another library", "graph gone"])
def test_what_was_kept_and_is_damaged_is_made_again(start, tmp_path, harm):
    _, wanted = start()
    (verdict,) = (tmp_path / "cache" / "native").glob("choice-*.json")
    graph = next((tmp_path / "cache" / "native").glob("graph-*.mask_decoder.ort"))
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
    graph = next((tmp_path / "cache" / "native").glob("graph-*.mask_decoder.ort"))
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
    write_shapes(
        tmp_path / "b", {"B": (1, 1, 1), "K": (1, 3, 8), "L": (8, 16, 77), "H": (64, 128, 256), "W": (64, 128, 256)}
    )
    assert not known(start(bundle=tmp_path / "b")[0]) and known(start(bundle=tmp_path / "b")[0])
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    del manifest["files"]["precision.json"]
    (tmp_path / "b" / "precision.json").unlink()
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


def test_the_kept_folder_is_the_users_alone(start, tmp_path):
    room = tmp_path / "cache" / "native"
    room.mkdir(parents=True)
    room.chmod(0o777)
    start()
    assert room.stat().st_mode & 0o777 == 0o700 and known(start()[0])


@pytest.mark.parametrize("kind", ["link", "of another user"])
def test_a_folder_of_others_is_not_trusted(start, tmp_path, kind):
    room = tmp_path / "cache" / "native"
    start()
    if kind == "link":
        room.rename(tmp_path / "elsewhere")
        room.symlink_to(tmp_path / "elsewhere")
    elif os.geteuid() == 0:
        os.chown(room, 12345, 12345)
    else:
        pytest.skip("only root can give a folder away")
    lines, _ = start()
    assert not known(lines) and any(f"nothing is kept in {room}" in line for line in lines)


def wrong_bundle(bundle, folder):
    """A copy whose golden sample expects other logits."""
    from safetensors.numpy import load_file, save_file

    from digseg_engine.bundle import sha256

    shutil.copytree(bundle, folder)
    path = folder / "golden.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "logits": tensors["logits"] + np.float32(1)}, path)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][path.name] = {"size": path.stat().st_size, "sha256": sha256(path)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize("backend", ["onnxruntime", "auto"])
def test_a_backend_that_is_wrong_on_the_golden_sample_is_refused(start, native_bundle, tmp_path, backend):
    from native_library import NativeError

    with pytest.raises(NativeError, match=r"runtime error: .*wrong on the golden sample: relative error [\d.]+"):
        start(bundle=wrong_bundle(native_bundle, tmp_path / "b"), backend=backend.encode())


def test_a_named_backend_is_checked_once(start):
    checked = [any("right on the golden sample" in line for line in start(backend=b"onnxruntime")[0]) for _ in range(2)]
    assert checked == [True, False]
    assert any("right on the golden sample" in line for line in start(backend=b"onnxruntime", cache="")[0])


def test_a_missing_runtime_is_said_once_and_shortly(start, library, native_bundle):
    from native_library import NativeError

    with pytest.raises(NativeError, match="unavailable: no backend can run here") as caught:
        start(onnxruntime_library=b"/nowhere/libonnxruntime.so.1")
    text = caught.value.text
    assert text.count("cannot be loaded") == 1 and "onnxruntime-cuda, onnxruntime: " in text and len(text) < 400


def test_the_runtimes_telemetry_is_off(installed, environment, native_bundle, tmp_path):
    """A device id is written while the library starts, so that nothing but an empty home shows that it is off."""
    for name in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME"):
        environment.pop(name, None)
    home = tmp_path / "home"
    home.mkdir()
    command = [installed / "programs" / "stress", "threads", native_bundle, "2", "1"]
    done = run_program(command, env={**environment, "HOME": str(home), "DIGSEG_CACHE": str(tmp_path / "cache")})
    assert done.returncode == 0 and list(home.rglob("*")) == []
