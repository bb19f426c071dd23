"""An export that is interrupted and run again: finished stages are not done again, and the bundle has the same bytes."""

import os
import shutil
from dataclasses import replace

import onnx
import pytest
from pico_exports import *  # noqa: F403

from digseg_engine.errors import VerificationError
from digseg_engine.precisions import Limits, spec_of
from digseg_engine.vocabulary import Vocabulary
from digseg_export import conversion, folded, kept_stages, parallel_trace, publish, resumed, to_onnx
from digseg_export.export_key import checkpoint_hashes, export_key
from digseg_export.kept_stages import Stages, one_export, room_of
from digseg_export.publish import Options, export_bundle
from digseg_export.request import Request

posix = pytest.mark.skipif(os.name != "posix", reason="owners and modes of POSIX")
UNSTEADY = {"manifest.json", "sbom.cdx.json"}  # name the day
LIMITS = Limits(0.3, 0.4, labels=0.4)
NAMES = ("red circle", "a tree", "water")


@pytest.fixture
def done(traced, monkeypatch):
    """Names of the steps that are done for real, in their order. Tracing, of which `traced` is the outcome, is counted alone."""
    did, models = [], traced[1].models

    def counted(name, work):
        return lambda *given, **named: (did.append(name), work(*given, **named))[1]

    def trace(module, spec, arguments, shapes):
        copy = onnx.ModelProto()
        copy.CopyFrom(models[spec.file])
        return copy

    monkeypatch.setattr(to_onnx, "export_graph", counted("trace", trace))
    monkeypatch.setattr(parallel_trace, "second_core", lambda: False)  # nobody counts in a copy of this process
    monkeypatch.setattr(conversion.Conversion, "measure", counted("measure", conversion.Conversion.measure))
    monkeypatch.setattr(conversion.Conversion, "write", counted("convert", conversion.Conversion.write))
    for name in ("samples", "verify", "choose_threshold", "write_labels_graph", "verify_labels", "prove"):
        monkeypatch.setattr(publish, name, counted(name, getattr(publish, name)))
    return did


def export(pico_folder, target, precision="fp16", stop="", options=None):
    """Export; with `stop`, Ctrl-C at that step."""

    def progress(step):
        if stop and step.startswith(stop):
            raise KeyboardInterrupt

    return export_bundle(pico_folder, precision, target, LIMITS, progress, options or Options())


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in UNSTEADY}


def test_finished_stages_are_not_done_again_and_the_bytes_are_the_same(pico_folder, tmp_path, done):
    options = replace(Request(imgsz="32", batch=1).options())
    export(pico_folder, tmp_path / "whole", options=options)
    every = sorted(set(done))
    assert every == ["choose_threshold", "convert", "measure", "prove", "samples", "trace", "verify"]
    for stop, wanted in (
        ("answer test scenes", ["trace"] * 4 + ["measure"]),
        ("verify", ["samples", "convert"]),
        ("check graphs", ["verify", "choose_threshold", "verify"]),
        ("", ["prove"]),
    ):
        done.clear()
        if stop:
            with pytest.raises(KeyboardInterrupt):
                export(pico_folder, tmp_path / "cut", stop=stop, options=options)
            assert sorted(path.name for path in tmp_path.iterdir()) == [room_of(tmp_path / "cut").name, "whole"]
        else:
            export(pico_folder, tmp_path / "cut", options=options)
        assert done == wanted
    assert bytes_of(tmp_path / "cut") == bytes_of(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "whole"]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_folded_export_goes_on_as_well(pico_folder, tmp_path, done, precision):
    options = Options(vocabulary=Vocabulary(NAMES, NAMES))
    export(pico_folder, tmp_path / "whole", precision, options=options)
    done.clear()
    with pytest.raises(KeyboardInterrupt):
        export(pico_folder, tmp_path / "cut", precision, "check graphs", options)
    assert "verify_labels" in done and "measure" in done
    done.clear()
    export(pico_folder, tmp_path / "cut", precision, options=options)
    assert done == ["prove"] and bytes_of(tmp_path / "cut") == bytes_of(tmp_path / "whole")
    assert folded.LABELS.file in bytes_of(tmp_path / "cut")


def test_other_options_begin_anew_and_an_error_leaves_nothing(pico_folder, tmp_path, done):
    with pytest.raises(KeyboardInterrupt):
        export(pico_folder, tmp_path / "b", stop="calibrate")
    done.clear()
    with pytest.raises(VerificationError, match="nothing was published"):
        export_bundle(pico_folder, "fp32", tmp_path / "b", Limits(0.0, 1.0))
    assert done[:4] == ["trace"] * 4 and list(tmp_path.iterdir()) == []


def stages(tmp_path, key="k"):
    (tmp_path / "room").mkdir(exist_ok=True)
    return Stages(tmp_path / "room", key)


def test_a_stage_counts_only_whole_and_for_its_own_key(tmp_path):
    (tmp_path / "weights").write_bytes(b"w" * 100)
    kept = stages(tmp_path)
    kept.keep("a", {"n": 1}, {"onnx": b"graph"}, {"data": tmp_path / "weights"})
    found = stages(tmp_path).find("a")
    assert found.facts == {"n": 1} and found.read("onnx") == b"graph" and found.read("data") == b"w" * 100
    (tmp_path / "room" / "a.onnx").write_bytes(b"grapH")
    assert stages(tmp_path).find("a") is None
    kept.keep("a", {}, {"onnx": b"graph"})
    (tmp_path / "room" / "half.onnx").touch()
    (tmp_path / "room" / ".digseg-0-1-0.tmp").touch()
    assert stages(tmp_path).names == ["a"] and len(list((tmp_path / "room").iterdir())) == 2
    assert stages(tmp_path, "another").find("a") is None and list((tmp_path / "room").iterdir()) == []


OTHERS = {"facts": "1", "parts": "{}"}, {"facts": "{}", "parts": '{"/x": "0"}'}, {"facts": "{}", "parts": "[]"}
STRANGE = [
    f'{{"format": "{kept_stages.FORMAT}", "key": "k", "facts": {o["facts"]}, "parts": {o["parts"]}}}' for o in OTHERS
]


@pytest.mark.parametrize("body", ["", "[]", "{}", *STRANGE, "[" * 9999])
def test_a_stage_that_says_something_else_is_none(tmp_path, body):
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "a.json").write_text(body)
    assert stages(tmp_path).find("a") is None and list((tmp_path / "room").iterdir()) == []


def test_facts_that_were_found_of_other_bytes_are_found_anew(tmp_path):
    kept, path = stages(tmp_path), tmp_path / "graph.onnx"
    path.write_bytes(b"1")
    assert [resumed.found_of(kept, "a", [path], lambda: 1), resumed.found_of(kept, "a", [path], lambda: 2)] == [1, 1]
    path.write_bytes(b"2")
    assert resumed.found_of(kept, "a", [path], lambda: 3) == 3


def test_nothing_is_kept_where_the_bundle_may_need_the_room(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_stages, "SPARE", 1 << 60)
    kept = stages(tmp_path)
    kept.keep("a", {}, {"onnx": b"graph"})
    assert kept.find("a") is None and list((tmp_path / "room").iterdir()) == []


def test_the_key_is_of_the_checkpoint_the_options_and_the_pictures(pico_folder, tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.png").write_bytes(b"1")
    made_of = checkpoint_hashes(pico_folder)
    assert "student/model.safetensors" in made_of
    asked = {"precision": "fp16", "limits": spec_of("fp16").limits}
    keys = [export_key(made_of, asked, [tmp_path / "p"]), export_key({**made_of, "digseg.json": "0"}, asked, [tmp_path / "p"]),
            export_key(made_of, {**asked, "limits": Limits(0.1, 0.2)}, [tmp_path / "p"])]  # fmt: skip
    assert export_key(made_of, asked, [tmp_path / "p"]) == keys[0]
    (tmp_path / "p" / "a.png").write_bytes(b"2")
    assert len({*keys, export_key(made_of, asked, [tmp_path / "p"])}) == 4


@posix
@pytest.mark.parametrize("kind", ["open to others", "a link", "a file", "of another user"])
def test_a_room_of_somebody_else_is_not_used(tmp_path, kind, monkeypatch):
    target, room = tmp_path / "b", room_of(tmp_path / "b")
    if kind == "a link":
        (tmp_path / "elsewhere").mkdir()
        room.symlink_to(tmp_path / "elsewhere")
    elif kind == "a file":
        room.touch()
    else:
        room.mkdir(mode=0o700)
        room.chmod(0o770 if kind == "open to others" else 0o700)
    if kind == "of another user":
        monkeypatch.setattr(os, "geteuid", lambda: room.stat().st_uid + 1)
    with one_export(target, lambda who: None) as of:
        of("k").keep("a", {}, {"onnx": b"x"})
        assert of("k").find("a") is None
    assert room.exists() and (kind == "a file" or not list(room.iterdir()))


@posix
def test_a_room_that_nobody_came_back_to_goes_and_one_in_use_stays(tmp_path):
    old, used, foreign = (room_of(tmp_path / name) for name in ("old", "used", "foreign"))
    for room in (old, used, foreign):
        room.mkdir(mode=0o700)
        (room / "a.onnx").touch()
    (old / "writer").touch()
    with one_export(tmp_path / "used", lambda who: None):
        for path in (*old.iterdir(), *used.iterdir()):
            os.utime(path, (0, 0))  # also what a clock that jumps 50 years makes of it
        with one_export(tmp_path / "b", lambda who: None):
            assert {path.name for path in tmp_path.iterdir()} == {used.name, foreign.name, room_of(tmp_path / "b").name}
    assert [path.name for path in tmp_path.iterdir()] == [foreign.name]
    shutil.rmtree(foreign)
