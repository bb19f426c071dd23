"""The rule: created, verified, timed; the fastest right one wins, and the verdict is remembered for as long as it holds."""

import importlib.metadata
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from nano_models import NotANumber, Shifted, Slow, kind

from digseg_engine import Engine
from digseg_engine.errors import BackendError
from digseg_engine.runtime import backends, choice, machine
from digseg_engine.runtime.choice import Task, choose, measure, pair_iou
from digseg_engine.runtime.source import open_source

TASK = Task(64, prompts=2)
slow = pytest.mark.long


@pytest.fixture
def registered():
    """Register backends for one test."""
    names = []

    def add(name, backend):
        backends.register(kind(name, backend))
        names.append(name)

    yield add
    for name in names:
        backends.unregister(name)


def rows(verdict):
    return {row.backend: row for row in verdict.rows}


def test_wrong_and_slow_backends_are_not_chosen(nano_models, registered):
    for name, backend in (("shifted", Shifted), ("nan", NotANumber), ("slow", Slow)):
        registered(name, backend)
    found = rows(measure(open_source(nano_models.fp32), TASK))
    assert found["onnxruntime"].chosen and found["onnxruntime"].right and found["onnxruntime"].error < 1e-3
    assert not found["shifted"].right and "wrong: error" in found["shifted"].reason and found["shifted"].ms is None
    assert not found["nan"].right and "not finite" in found["nan"].reason
    assert found["slow"].right and not found["slow"].chosen and found["slow"].ms > 0
    assert sum(row.chosen for row in found.values()) == 1


def test_the_faster_of_two_right_ones_wins_whatever_its_name(nano_models, registered, monkeypatch):
    registered("other", Slow)
    times = {"onnxruntime": 9.0, "other": 4.0}
    monkeypatch.setattr(choice, "time_backend", lambda backend, task, source: times[backend.name])
    verdict, backend = choose(open_source(nano_models.fp32), TASK)
    assert verdict.chosen.backend == backend.name == "other" and verdict.chosen.ms == 4.0


def test_with_only_wrong_backends_there_is_an_error_that_lists_them(nano_models, registered, monkeypatch):
    registered("shifted", Shifted)
    only = backends.kinds()["shifted"]
    monkeypatch.setattr(choice, "kinds", lambda: {"shifted": only})
    with pytest.raises(BackendError, match=r"no backend can run here and is right \(shifted: wrong: error"):
        choose(open_source(nano_models.fp32), TASK)


def test_with_no_backend_on_a_device_the_error_is_short(nano_models):
    with pytest.raises(BackendError) as caught:
        Engine.load(nano_models.fp32, device="cuda:77")
    message = str(caught.value)
    assert len(message) < 400 and message.count(";") < 4 and "`digseg doctor --bundle FOLDER` says why" in message
    assert (
        "(onnxruntime: onnxruntime runs on the CPU, and the device cuda:77 was asked for; leave the device out"
        in message
    )


def test_a_wrong_backend_is_told_in_fallbacks(nano_models, registered):
    registered("nan", NotANumber)
    engine = Engine.load(nano_models.fp32)
    picture = np.zeros((64, 64, 3), np.uint8)
    assert any(note.startswith("nan: wrong") for note in engine.segment(picture, ["red"]).fallbacks)
    assert Engine.load(nano_models.fp32, "onnxruntime").segment(picture, ["red"]).fallbacks == ()


def test_the_second_start_uses_the_verdict(nano_models, own_cache, monkeypatch):
    first, _ = choose(open_source(nano_models.fp32), TASK)
    assert not first.cached and len(list(own_cache.glob("*.json"))) == 1
    monkeypatch.setattr(choice, "assess", lambda *given: pytest.fail("measured again"))
    second, backend = choose(open_source(nano_models.fp32), Task(64, prompts=3))  # 2 and 3 prompts share a verdict
    assert second.cached and second.rows == first.rows and backend.name == first.chosen.backend
    assert Engine.load(nano_models.fp32, size=64, prompts=4).backend.name == first.chosen.backend


@pytest.mark.parametrize("what", ["bundle", "version", "device", "size", "prompts", "backends", "damaged"])
def test_what_changes_the_answer_measures_again(nano_models, own_cache, monkeypatch, tmp_path, registered, what):
    choose(open_source(nano_models.fp32), TASK)
    model, task = nano_models.fp32, TASK
    if what == "bundle":
        model = nano_models.fp16
    elif what == "version":
        (tmp_path / "onnxruntime-99.0.dist-info").mkdir()
        monkeypatch.syspath_prepend(tmp_path)
    elif what == "device":
        monkeypatch.setattr(machine, "_gpus", lambda: "NVIDIA Test")
    elif what == "size":
        task = Task(96, prompts=2)
    elif what == "prompts":
        task = Task(64, prompts=20)
    elif what == "backends":
        registered("slow", Slow)
    else:
        (path,) = own_cache.glob("*.json")
        path.write_text('{"rows": [')
    assert not choose(open_source(model), task)[0].cached


def test_the_only_one_is_verified_but_not_timed(nano_models, monkeypatch):
    only = {"onnxruntime": backends.kinds()["onnxruntime"]}
    monkeypatch.setattr(choice, "kinds", lambda: only)
    monkeypatch.setattr(choice, "time_backend", lambda *given: pytest.fail("timed"))
    row = choose(open_source(nano_models.fp32), TASK)[0].chosen
    assert row.right and row.error < 1e-3 and row.ms is None


def test_a_copied_bundle_keeps_its_verdict(nano_models, tmp_path):
    choose(open_source(nano_models.fp32), TASK)
    shutil.copytree(nano_models.fp32, tmp_path / "elsewhere")
    assert choose(open_source(tmp_path / "elsewhere"), TASK)[0].cached


def test_a_choice_that_cannot_run_any_more_is_measured_again(nano_models, own_cache):
    choose(open_source(nano_models.fp32), TASK)
    (path,) = own_cache.glob("*.json")
    body = json.loads(path.read_text())
    for row in body["rows"]:
        row["chosen"] = row["backend"] == "onnxruntime-tensorrt"
    path.write_text(json.dumps(body))
    verdict, backend = choose(open_source(nano_models.fp32), TASK)
    assert not verdict.cached and backend.name == verdict.chosen.backend != "onnxruntime-tensorrt"


def test_a_cache_that_cannot_be_written_costs_nothing_else(nano_models, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DIGSEG_CACHE", str(tmp_path / "file" / "deep"))
    assert choose(open_source(nano_models.fp32), TASK)[1].name == "onnxruntime"


@slow
def test_all_backends_of_a_bundle_and_its_checkpoint(nano_models):
    found = rows(measure(open_source(nano_models.fp32, nano_models.checkpoint), TASK))
    for name in ("onnxruntime", "torch", "torch-compile"):
        assert found[name].right and found[name].ms > 0 and found[name].iou > 0.999, found[name]
    fastest = min((row for row in found.values() if row.right), key=lambda row: row.ms)
    assert fastest.chosen


def test_versions_are_those_of_the_packages():
    found = machine.library_versions()
    assert {"onnxruntime", "torch", "numpy"} <= set(found)
    assert all(importlib.metadata.version(name) == known for name, known in found.items())


def test_a_bundle_of_another_model_exposes_itself(nano_models, tmp_path):
    """Torch on a checkpoint that is not the bundle's is measured against the bundle's golden sample and refused."""
    from digseg_engine.model.pretrained import load_checkpoint, save_checkpoint

    other = load_checkpoint(nano_models.checkpoint)
    other.student.head.logits.bias.data += 0.5
    tokenizer = (nano_models.checkpoint / "tokenizer" / "tokenizer.json").read_text()
    save_checkpoint(other, tokenizer, tmp_path / "other")
    source = open_source(nano_models.fp32, tmp_path / "other")
    torch = backends.kinds()["torch"]
    row = choice.assess(torch, choice.look(torch, source), source, TASK)
    assert row.usable and not row.right and "wrong" in row.reason


def test_pair_iou_by_hand():
    a, b = np.zeros((1, 3, 2, 2), np.bool_), np.zeros((1, 3, 2, 2), np.bool_)
    a[0, 0, 0], b[0, 0, :, 0] = True, True  # one of three pixels in common
    a[0, 1] = b[0, 1] = True
    assert pair_iou(a, b) == pytest.approx([1 / 3, 1, 1])


def test_the_choice_says_what_it_is_at(nano_models, registered, caplog):
    registered("slow", Slow)
    with caplog.at_level("INFO", "digseg_engine"):
        choose(open_source(nano_models.fp32), TASK)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ["choosing a backend, 1 of 2: onnxruntime; the choice is remembered",
                     "choosing a backend, 2 of 2: slow; the choice is remembered"]  # fmt: skip
    caplog.clear()
    choose(open_source(nano_models.fp32), TASK)
    assert not caplog.records


@pytest.mark.parametrize("measured_before", [False, True])
def test_what_compiles_is_left_out_for_little_work(nano_models, monkeypatch, measured_before):
    made = []

    class Compiled(Slow):
        def __init__(self, source):
            made.append(1)
            super().__init__(source)

    only = {
        "onnxruntime": backends.kinds()["onnxruntime"],
        "compiled": replace(kind("compiled", Compiled), slow_start=True),
    }
    monkeypatch.setattr(choice, "kinds", lambda: only)
    monkeypatch.setattr(choice, "time_backend", lambda backend, *given: 1.0 if backend.name == "compiled" else 9.0)
    source = open_source(nano_models.fp32)
    if measured_before:
        assert choose(source, TASK)[1].name == "compiled"
    made.clear()
    verdict, backend = choose(source.with_work(1, 64), TASK)
    assert backend.name == verdict.chosen.backend == "onnxruntime" and not made and verdict.cached == measured_before
    assert choose(source.with_work(1, 64), TASK)[0].cached
    assert choose(source.with_work(10**9, 64), TASK)[1].name == "compiled"
    del only["onnxruntime"]
    assert choose(source.with_work(1, 64), TASK)[1].name == "compiled"  # better late than not at all


def test_little_work_with_a_checkpoint_compiles_nothing(nano_models):
    few, many = (open_source(nano_models.checkpoint).with_work(n, 64) for n in (1, 10**9))
    assert (few.brief, many.brief) == (True, False)
    assert backends.kinds()["torch-compile"].slow_start and not backends.kinds()["torch"].slow_start
