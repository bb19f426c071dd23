"""OpenVINO, the real one: the golden sample, ONNX Runtime's masks, its threads and its cache, and why it cannot run."""

import gc
import logging
import pickle
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from programs import run_program

from digseg_engine import Engine
from digseg_engine.contract import MASK_DECODER
from digseg_engine.errors import BackendError
from digseg_engine.named import SHIPPED_BUNDLE
from digseg_engine.runtime import choice, doctor
from digseg_engine.runtime.backends import kinds, openvino_backend
from digseg_engine.runtime.backends.openvino_backend import OpenvinoBackend, Requests, compiled, load, probe, settings
from digseg_engine.runtime.backends.ort_backend import PROBE
from digseg_engine.runtime.choice import Task, assess, check_golden, measure, verdict_key
from digseg_engine.runtime.machine import cores
from digseg_engine.runtime.source import open_source

ROOT = Path(__file__).resolve().parent.parent.parent
PROMPTS = ["road", "some trees", "a red circle"]
TASK = Task(128, prompts=1)
needs_bf16 = pytest.mark.skipif(not probe("openvino-bf16").usable, reason="this processor computes no bf16")
pytestmark = pytest.mark.usefixtures("with_openvino")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One cache for the engines of this module: a graph is compiled once."""
    folder = tmp_path_factory.mktemp("openvino-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIGSEG_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def source():
    return replace(open_source(SHIPPED_BUNDLE), threads=1)


@pytest.fixture(scope="module")
def backend(cache, source):
    return OpenvinoBackend(source)


@pytest.fixture(scope="module")
def engine(backend, source):
    return Engine(source, backend)


@pytest.fixture(scope="module")
def usual(source):
    return Engine.load(SHIPPED_BUNDLE, "onnxruntime", threads=1)


def pictures(count):
    """Pictures of different sizes and proportions."""
    rng = np.random.default_rng(3)
    sizes = [(64, 48), (48, 80), (64, 64), (33, 64)]
    return [rng.integers(0, 255, (*sizes[i % 4], 3), np.uint8).repeat(2, 0).repeat(2, 1) for i in range(count)]


def relative(got, want):
    got, want = (np.asarray(array, np.float64) for array in (got, want))
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def test_it_answers_the_golden_sample(engine, source):
    error, iou = check_golden(engine.backend, source.golden)
    assert 0 < error < 2e-3 and iou > 0.995
    assert "computes in float32, fp16 weights" in engine.backend.detail


def test_it_finds_what_onnxruntime_finds_at_any_shape(engine, usual):
    for picture in pictures(4):
        for prompts in (PROMPTS, PROMPTS[:1], PROMPTS * 3):
            got, want = (each.segment(picture, prompts, 64) for each in (engine, usual))
            assert relative(got.logits, want.logits) < 5e-3
            union, differ = (got.masks | want.masks).sum(), (got.masks != want.masks).sum()
            assert differ <= max(10, 0.01 * union)  # of small masks the border is much
    several = engine.segment_batch(pictures(4), PROMPTS, 64)
    for one, picture in zip(several, pictures(4)):
        assert relative(one.logits, usual.segment(picture, PROMPTS, 64).logits) < 5e-3


def test_a_presence_readout_is_asked(with_presence):
    got, want = (Engine.load(with_presence.bundle, name, threads=1) for name in ("openvino", "onnxruntime"))
    for picture in with_presence.pictures[:2]:
        a, b = (each.segment(picture, with_presence.prompts) for each in (got, want))
        assert np.allclose(a.presence, b.presence, atol=1e-4) and a.there.tolist() == b.there.tolist()
        assert 0 < a.there.sum() < len(a.there)


@needs_bf16
def test_bf16_is_computed_in_bf16_and_judged_so(cache, source, engine):
    half = OpenvinoBackend(source, "openvino-bf16")
    for graph in (half._text, half._image, half._masks):
        assert graph.graph.get_property("INFERENCE_PRECISION_HINT").to_string() == "bf16"
    error, iou = check_golden(half, source.golden)
    assert error > 5 * check_golden(engine.backend, source.golden)[0]  # other arithmetic, not another name for the same
    limits = source.golden.allowing(half.precision)
    assert limits.relative > source.golden.relative and choice.within_limits(error, iou, limits)[0]


def wrong(monkeypatch):
    """Every answer one step too far right."""
    right = Requests.__call__
    monkeypatch.setattr(Requests, "__call__", lambda self, feeds: [np.roll(a, 1, -1) for a in right(self, feeds)])


def test_a_wrong_answer_is_refused(cache, source, monkeypatch):
    wrong(monkeypatch)
    with pytest.raises(BackendError, match=r"backend openvino cannot be used here .*wrong: error"):
        Engine.load(SHIPPED_BUNDLE, "openvino", threads=1)
    found = {row.backend: row for row in measure(source, TASK).rows}
    assert not found["openvino"].right and "wrong" in found["openvino"].reason and found["openvino"].ms is None
    assert found["onnxruntime"].chosen


def test_it_is_one_more_row_and_may_win(source, monkeypatch, own_cache):
    times = {"onnxruntime": 9.0, "openvino": 4.0, "openvino-bf16": 5.0}
    monkeypatch.setattr(choice, "time_backend", lambda backend, task, source: times[backend.name])
    assert measure(source, TASK).chosen.backend == "openvino"
    brief = replace(source, brief=True)  # compiling takes longer than such work
    assert choice.choose(brief, Task(64))[1].name == "onnxruntime"


def test_another_release_is_another_verdict(source, monkeypatch, tmp_path):
    before = verdict_key(source, TASK)
    (tmp_path / "openvino-9999.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert verdict_key(source, TASK) != before


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_those_asked_for(cache, source, threads):
    assert (
        settings(openvino_backend.VARIANTS["openvino"], threads)["INFERENCE_NUM_THREADS"] == threads
    )  # of one core, too
    for graph in ("_text", "_image", "_masks"):
        made = getattr(OpenvinoBackend(replace(source, threads=threads)), graph).graph
        assert made.get_property("INFERENCE_NUM_THREADS") == min(threads, cores())
        assert made.get_property("NUM_STREAMS") == 1 and not made.get_property("ENABLE_CPU_PINNING")


def test_without_a_number_the_quota_counts(cache, source, monkeypatch):
    monkeypatch.setattr(openvino_backend, "cores", lambda: 1)
    made = OpenvinoBackend(replace(source, threads=None))._masks.graph
    assert made.get_property("INFERENCE_NUM_THREADS") == 1


def test_compiled_graphs_are_kept_in_this_users_closed_folder(source, own_cache):
    first = OpenvinoBackend(source)
    (folder,) = (own_cache / "openvino").iterdir()
    assert [at.stat().st_mode & 0o777 for at in (own_cache / "openvino", folder)] == [0o700, 0o700]
    kept = sorted(folder.rglob("*.blob"))
    assert len(kept) == len(source.bundle.graphs) and not first._masks.graph.get_property("LOADED_FROM_CACHE")
    again = OpenvinoBackend(source)
    assert all(graph.graph.get_property("LOADED_FROM_CACHE") for graph in (again._text, again._image, again._masks))
    assert sorted(folder.rglob("*.blob")) == kept
    assert relative(again.encode_image(source.golden.image), first.encode_image(source.golden.image)) < 1e-6


def test_other_weights_or_another_precision_have_a_folder_of_their_own(source, own_cache, monkeypatch):
    asked = []
    monkeypatch.setattr(openvino_backend, "private_folder", lambda *parts: asked.append(parts) or own_cache)
    made = OpenvinoBackend.__new__(OpenvinoBackend)
    made._device, made._full_name = "CPU", "this one"
    for made.name in ("openvino", "openvino-bf16"):
        for release in ("2026.4.1", "2026.5.0"):
            made._cache(source.bundle, release)
    made._full_name = "another"
    made._cache(source.bundle, "2026.4.1")
    monkeypatch.setattr(type(source.bundle), "digest", "another bundle")
    made._cache(source.bundle, "2026.4.1")
    assert len(set(asked)) == 6 and {folder for folder, _ in asked} == {"openvino"}


def test_a_cache_that_others_can_write_is_not_used(source, own_cache, caplog):
    (own_cache / "openvino").mkdir()
    (own_cache / "openvino").chmod(0o777)
    with caplog.at_level(logging.WARNING, "digseg_engine"):
        error, _ = check_golden(OpenvinoBackend(source), source.golden)
    assert error < 2e-3 and not list((own_cache / "openvino").iterdir())
    assert "compiled graphs are not kept" in caplog.text and "can be written by others" in caplog.text


def test_threads_share_an_engine_and_change_nothing(engine):
    asked = [(picture, PROMPTS[: 1 + i % 3]) for i, picture in enumerate(pictures(24))]
    want = [engine.segment(picture, prompts, 64).logits for picture, prompts in asked]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda pair: engine.segment(*pair, 64).logits, asked))
    assert all(np.array_equal(a, b) for a, b in zip(got, want))


@needs_bf16
def test_engines_side_by_side_keep_to_themselves(engine, cache, source):
    half = Engine(source, OpenvinoBackend(source, "openvino-bf16"))
    (picture,) = pictures(1)
    want = [each.segment(picture, PROMPTS, 64).logits for each in (engine, half)]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda i: (engine, half)[i % 2].segment(picture, PROMPTS, 64).logits, range(12)))
    assert all(np.array_equal(logits, want[i % 2]) for i, logits in enumerate(got))
    assert relative(want[1], want[0]) > 1e-3


def test_an_answer_is_not_written_again(backend, source):
    """Requests use their own memory again; what was answered stays."""
    first = backend.encode_image(source.golden.image)
    before = first.copy()
    backend.encode_image(-source.golden.image)
    assert np.array_equal(first, before)


def test_a_cpu_takes_and_gives_no_half_precision(engine):
    """It would turn numbers one by one; the stored graphs have fp16 borders."""
    backend = engine.backend
    for requests in (backend._text, backend._image, backend._masks):
        ports = [*requests.graph.inputs, *requests.graph.outputs]
        assert not {"f16", "bf16"} & {port.element_type.to_string() for port in ports}
    assert engine.encode(pictures(1)[0], 64).place.kept.dtype == np.float32
    stored = openvino_backend.core().read_model(str(SHIPPED_BUNDLE / MASK_DECODER.file))
    assert load().Type.f16 in [port.element_type for port in stored.inputs]


def test_arrays_are_lent_and_those_that_cannot_be_are_copied():
    graph = Requests(openvino_backend.core().compile_model(openvino_backend.core().read_model(PROBE, b""), "CPU", {}))
    (name,) = graph.graph.input(0).names
    for given in (np.arange(4, dtype=np.float32), np.arange(7, dtype=np.int64), np.arange(6, dtype=np.float32)[::2]):
        want = np.array(given, np.float32)
        assert np.array_equal(graph({name: given})[0], want)
        given.flags.writeable = False
        assert np.array_equal(graph({name: given})[0], want)
    assert len(graph._free) == 1
    with pytest.raises(ValueError, match="unpack"):
        graph({"another": np.zeros(1, np.float32)})
    assert len(graph._free) == 1  # the request is there for the next


def test_a_tensor_of_flags_is_one():
    made = openvino_backend.tensor(np.array([[True, False]]))
    assert made.element_type == load().Type.boolean and made.data.tolist() == [[True, False]]


def test_an_encoding_is_given_back_with_its_last_reference(engine):
    encoded = engine.encode(pictures(1)[0], 64)
    engine.segment(encoded, PROMPTS)
    kept = weakref.ref(encoded.place.kept)
    del encoded
    gc.collect()
    assert kept() is None


def test_it_is_pickled_as_what_it_was_opened_from(cache):
    engine = Engine.load(SHIPPED_BUNDLE, "openvino", threads=1)
    copy = pickle.loads(pickle.dumps(engine))
    assert copy.backend.name == "openvino" and copy.backend._masks.graph.get_property("INFERENCE_NUM_THREADS") == 1
    (picture,) = pictures(1)
    assert np.array_equal(copy.segment(picture, PROMPTS, 64).logits, engine.segment(picture, PROMPTS, 64).logits)


def test_the_doctor_has_a_row_for_each(monkeypatch):
    ours = {name: kind for name, kind in kinds().items() if name in openvino_backend.VARIANTS}
    monkeypatch.setattr(doctor, "kinds", lambda: ours)  # the others take their time
    found = {row.name: row for row in doctor.inspect_machine()}
    assert found["openvino"].usable and "CPU, float32" in found["openvino"].detail
    assert set(openvino_backend.VARIANTS) == set(ours) <= set(found)


@pytest.mark.parametrize("name", ["openvino-gpu", "openvino-npu"])
def test_a_device_that_is_not_there(name, source):
    if probe(name).usable:
        pytest.skip("this machine has one")
    kind = name.partition("-")[2].upper()
    assert f"OpenVINO finds no {kind} here (it finds CPU" in probe(name).reason and probe(name).install
    with pytest.raises(BackendError, match=f"backend {name} cannot run here: OpenVINO finds no {kind} here"):
        Engine.load(SHIPPED_BUNDLE, name)


def test_a_device_is_never_another(source):
    for name, device in (("openvino", "cuda"), ("openvino", "gpu"), ("openvino-gpu", "cpu"), ("openvino-npu", "gpu:1")):
        with pytest.raises(BackendError, match=f"{name} runs on the [CGN]PU, and the device {device} was asked for"):
            OpenvinoBackend(replace(source, device=device), name)
    assert openvino_backend.device(replace(source, device="gpu:1"), "openvino-gpu") == "GPU.1"
    assert openvino_backend.device(replace(source, device="cpu"), "openvino-bf16") == "CPU"


def test_without_the_package_its_extra_is_named(source, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    found = probe()
    assert not found.usable and "not installed" in found.reason and "[openvino]" in found.install
    with pytest.raises(
        BackendError, match=r"backend openvino cannot run here: .*; install it with pip install .*\[openvino\]"
    ):
        Engine.load(SHIPPED_BUNDLE, "openvino")


def test_a_graph_that_it_does_not_take_is_told_by_its_operator(cache, source, monkeypatch):
    """The graph for a CPU, whose loop over the prompts is refused; the table of the doctor says so, and another one runs."""
    monkeypatch.setattr(
        type(source.bundle),
        "file",
        lambda bundle, name: bundle.folder / name.replace("decoder.onnx", "decoder.fp32.onnx"),
    )
    for asked in ("graph", "unchanged"):  # which would tell that it is another file
        monkeypatch.setattr(type(source.bundle), asked, lambda bundle, name: None)
    row = assess(kinds()["openvino"], probe(), source, TASK, timed=False)
    assert not row.usable and f"OpenVINO does not take {MASK_DECODER.file}: operator Scan (" in row.reason
    assert "\n" not in row.reason and len(row.reason) < 400


def test_an_operator_that_nobody_knows(tmp_path):
    from onnx import TensorProto, helper

    border = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Frobnicate", ["x"], ["y"])], "g", border[:1], border[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    properties = settings(openvino_backend.VARIANTS["openvino"], 1)
    with pytest.raises(BackendError, match=r"does not take x\.onnx: .*Frobnicate"):
        compiled(openvino_backend.core(), model.SerializeToString(), "CPU", properties, "x.onnx")


def test_a_precision_that_is_not_the_one_asked_for_is_an_error():
    class Elsewhere:
        def read_model(self, *model):
            return openvino_backend.core().read_model(PROBE, b"")

        def compile_model(self, model, device, properties):
            return self

        def get_property(self, name):
            return load().Type.f32

    properties = settings(openvino_backend.VARIANTS["openvino-bf16"], 1)
    with pytest.raises(BackendError, match=r"runs x\.onnx in f32, and bf16 was asked for"):
        compiled(Elsewhere(), "x.onnx", "CPU", properties, "x.onnx")


def test_nothing_is_reported_to_its_maker():
    """`import openvino` sends a report by the package openvino_telemetry, where it can import that."""
    code = (
        "import sys; from digseg_engine.runtime.backends.openvino_backend import load\n"
        "print(load().__name__, [name for name in sys.modules if name.startswith('openvino_telemetry')])"
    )
    done = run_program([sys.executable, "-c", code], cwd=ROOT)
    assert done.stdout.split(maxsplit=1) == ["openvino", "[]\n"], done.stderr


def test_the_number_of_threads_is_that_of_the_engine(source, own_cache):
    for threads in (1, 2):
        made = OpenvinoBackend(replace(source, threads=threads))
        for graph in (made._text, made._image, made._masks):
            assert graph.graph.get_property("INFERENCE_NUM_THREADS") == min(threads, cores())


def test_ctrl_c_is_an_interruption_whatever_was_opened_and_dropped(nano_models):
    """OpenVINO moves the stack for signals, which Python's own handlers run on, into memory that ends with its core."""
    code = (
        "import faulthandler, gc, os, signal\n"
        "faulthandler.enable()\n"  # as pytest and many servers do: handlers have a stack of their own
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from digseg_engine import Engine\n"
        f"load = lambda: Engine.load({str(nano_models.fp32)!r}, 'openvino')\n"
        "first, second = load(), load()\n"
        "del first; gc.collect()\n"
        "with ThreadPoolExecutor(1) as pool: third = pool.submit(load).result()\n"
        "del second, third; gc.collect()\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')"
    )
    done = run_program([sys.executable, "-c", code])
    assert (done.returncode, done.stdout.strip()) == (0, "interrupted"), done.stderr
