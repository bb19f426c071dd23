"""`digseg bench`: what it measures, what it writes, and that what does not fit is a row and no crash. No time is judged."""

import json
import os
import sys
import time
from mmap import mmap
from pathlib import Path

import pytest
from programs import run_program

from digseg_engine import Engine
from digseg_engine.commands.bench import numbers, remarks, tables
from digseg_engine.errors import BackendError, UsageError
from digseg_engine.named import SHIPPED_BUNDLE
from digseg_engine.runtime import bench, bench_worker
from digseg_engine.runtime.choice import Task
from digseg_engine.runtime.peak import forget_peak, peak_bytes
from digseg_engine.runtime.source import open_source
from digseg_engine.runtime.timing import in_turns, keeping, milliseconds, repeated

ROOT = Path(__file__).resolve().parent.parent.parent
ENDS = """
import os, signal
from digseg_engine.runtime.backends import BackendKind, Usable, ort_backend

class Ends(ort_backend.OrtBackend):
    def decode(self, encoding, keys, values, token_mask):
        if len(keys) == 7:
            raise MemoryError
        if len(keys) == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().decode(encoding, keys, values, token_mask)

def create(source):
    made = Ends(source)
    made.name = "ends"
    print("libraries print what they like")
    return made

KIND = BackendKind("ends", lambda: Usable("ends", True, "made for a test"), create)
"""


def digseg(*words, path=()):
    places = os.pathsep.join(map(str, (ROOT, *path)))
    command = [sys.executable, "-m", "digseg_engine", "bench", *words]
    return run_program(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": places, "COLUMNS": "200"})


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The command, once: the shipped bundle, two shapes of one size and one that is too small for the model."""
    room = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIGSEG_CACHE", str(room / "cache"))
        done = digseg("--backends", "onnxruntime,onnxruntime-cuda", "--sizes", "64,16", "--prompts", "1,3", "--batch", "2",
                      "--threads", "1", "--runs", "2", "--note", "a test", "--json", str(room / "b.json"), "--chart",
                      str(room / "b.png"))  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done, json.loads((room / "b.json").read_text()), room


def test_every_stage_of_every_shape(measured):
    _, body, _ = measured
    assert (
        body["format"] == "digseg.bench/1" and body["threads"] == 1 and body["note"] == "a test" and body["runs"] == 2
    )
    assert body["model"]["sha256"] == open_source(SHIPPED_BUNDLE).digest and "onnxruntime" in body["versions"]
    ran, cannot = body["backends"]
    assert cannot["backend"] == "onnxruntime-cuda" and cannot["reason"] and cannot["rows"] == []
    assert (
        ran["startup"]["first_ms"] > 0 and ran["startup"]["later"]["p95_ms"] >= ran["startup"]["later"]["median_ms"] > 0
    )
    small, large = ([row for row in ran["rows"] if row["size"] == size] for size in (16, 64))
    assert [(row["prompts"], row["batch"]) for row in large] == [(1, 2), (3, 2)]
    for row in large:
        first, later = row["first"], row["later"]
        assert first["runs"] == later["runs"] == 2 and row["first_call_ms"] > 0
        assert first["steps"]["encode"]["median_ms"] > 0 == later["steps"]["encode"]["median_ms"]
        assert sum(step["median_ms"] for step in first["steps"].values()) <= first["p95_ms"] * 1.5
        assert row["peak_bytes"] is None or row["peak_bytes"] > 1 << 20
    assert len(small) == 2 and all("working size must be 32 to 4096 pixels, got 16" in row["reason"] for row in small)


def test_what_it_says(measured):
    done, _, room = measured
    assert "from process start to the first mask" in done.stdout and "64 px, 2 pictures at once" in done.stdout
    assert (
        "onnxruntime-cuda: " in done.stdout and "onnxruntime, 16 px, 2 pictures, 1 prompt: working size" in done.stdout
    )
    assert "presence" in done.stdout
    assert "digseg: measuring onnxruntime, 4 shapes and its start (5)" in done.stderr
    assert (room / "b.png").read_bytes().startswith(b"\x89PNG")


def test_the_schema_is_documented(measured):
    page = (ROOT / "docs" / "runtime.md").read_text()
    body = measured[1]
    first = body["backends"][0]
    row = first["rows"][-1]
    for part in (body, first, first["startup"], row, row["first"], row["first"]["steps"]):
        assert {name for name in part if f"`{name}`" not in page} == set()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--backends", "onnxruntim"], 2, "unknown backend 'onnxruntim'; did you mean onnxruntime?"),
        (["--backends", "onnxruntime-cuda"], 1, "none of these backends can run here (onnxruntime-cuda: "),
        (["--sizes", "64,x"], 2, "--sizes must be whole numbers from 1 to 4096, with commas between, got '64,x'"),
        (["nowhere"], 1, "nowhere"),
    ],
)
def test_an_error_is_one_line(words, code, said):
    done = digseg(*words)
    assert done.returncode == code and done.stderr.count("\n") == 1 and said in done.stderr, done.stderr


def test_what_ends_a_process_or_its_memory_is_a_row(tmp_path, monkeypatch):
    """A real backend of another package: out of memory with 7 prompts, and the process killed with 5."""
    about = tmp_path / "ends_backend-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: ends-backend\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[digseg_engine.backends]\nends = ends_backend:KIND\n")
    (tmp_path / "ends_backend.py").write_text(ENDS)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, tmp_path))))
    plan = bench.Plan({"model": SHIPPED_BUNDLE, "threads": 1}, (64,), (1, 5, 6, 7), (1,), runs=1)
    done = []
    found = bench.measure_backend("ends", plan, lambda: done.append(1))
    assert not found.reason and len(done) == bench.parts(plan) == 5
    rows = {row["prompts"]: row for row in found.rows}
    assert "first" in rows[1] and "first" in rows[6] and list(rows) == [1, 5, 6, 7]
    assert rows[7]["notes"] == ["out of memory with 7 masks at once, went on with 3"]  # halved, and answered
    assert rows[1]["notes"] == []
    assert "its process ended by itself (signal 9" in rows[5]["reason"]


def test_a_first_question_encodes_its_prompts_and_a_later_one_does_not(monkeypatch):
    engine = Engine.load(SHIPPED_BUNDLE, "onnxruntime", threads=1)
    texts, encoded = [], []
    text, image = engine.backend.encode_text, engine.backend.encode_image
    monkeypatch.setattr(engine.backend, "encode_text", lambda *given: texts.append(time.sleep(0.01)) or text(*given))
    monkeypatch.setattr(engine.backend, "encode_image", lambda given: encoded.append(len(given)) or image(given))
    found = bench_worker.measure(engine, Task(64, batch=2, prompts=3), runs=4, seconds=60)
    assert found["first"]["steps"]["text"]["median_ms"] >= 30  # all three are in the stage that is theirs
    asked = 1 + bench_worker.WARM_UP + 4  # the very first call, the warm-up, the runs
    assert len(texts) == 3 * asked and sum(encoded) == 2 * (asked + 1)


def test_all_means_every_known_backend(monkeypatch):
    source = open_source(SHIPPED_BUNDLE)
    found = bench.wanted("all", source)
    assert found["onnxruntime"] == "" and found["torch"].startswith("needs a checkpoint")
    assert list(bench.wanted("onnxruntime , onnxruntime,tensorrt", source)) == ["onnxruntime", "tensorrt"]
    with pytest.raises(UsageError, match="unknown backend 'nobody'; expected all, or some of onnxruntime, "):
        bench.wanted("onnxruntime,nobody", source)
    with pytest.raises(BackendError, match="none of these backends can run here"):
        bench.wanted("torch", source)


def test_the_plan_names_every_shape_once():
    plan = bench.Plan({"model": Path("m")}, (256, 128), (20, 1), (8, 1))
    shapes = [(task.size, task.batch, task.prompts) for task in plan.tasks]
    assert len(set(shapes)) == 8 and shapes[0] == (128, 1, 1) and shapes[-1] == (256, 8, 20)
    assert numbers("8, 1,8") == (8, 1)
    for text in ("0", "4097", "1,,2", "-3"):
        with pytest.raises(ValueError):  # noqa: PT011
            numbers(text)


def test_calls_are_repeated_within_the_time_given():
    now = iter(range(1000))
    calls = []
    taken = repeated(lambda: calls.append(1), runs=5, warm_up=2, clock=lambda: next(now))
    assert len(calls) == 7 and taken == [1] * 5
    assert len(repeated(lambda: None, 5, 1, seconds=0.0, clock=lambda: next(now))) == 1  # never none
    order = []
    found = in_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, runs=2, warm_up=1)
    assert order == ["a", "b"] * 3 and {name: len(values) for name, values in found.items()} == {"a": 2, "b": 2}
    assert milliseconds([0.001 * n for n in range(101)]) == pytest.approx({"median_ms": 50, "p95_ms": 95})


def test_steps_are_of_all_pictures_together():
    class Answer:
        def __init__(self):
            self.timings = {"encode": 2.0}  # a picture's share

    kept = []
    keeping(lambda: [Answer(), Answer(), Answer()], kept)()
    keeping(Answer, kept)()
    assert kept == [{"encode": 6.0}, {"encode": 2.0}]


def test_a_peak_is_that_since_it_was_forgotten():
    with mmap(-1, 64 << 20) as held:  # an array's memory may stay with the allocator
        held.write(b"\1" * (64 << 20))
        high = peak_bytes()
    if not forget_peak():
        pytest.skip("this system does not forget a peak")
    assert peak_bytes() < high - (48 << 20)


def test_what_did_not_fit_is_told_in_the_table():
    row = {"size": 64, "batch": 1, "prompts": 3, "reason": "out of memory"}
    body = {"backends": [{"backend": "b", "startup": None, "rows": [row], "reason": "", "detail": "runs"}]}
    (table,) = tables(body)
    assert [next(iter(column.cells)) for column in table.columns][:3] == ["3", "b", "-"]
    assert remarks(body) == ["b: runs", "b, 64 px, 1 picture, 3 prompts: out of memory"]
