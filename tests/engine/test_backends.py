"""Backends: each one gives PyTorch's answer or says why it cannot run; nothing is replaced in silence."""

import os
import subprocess
import sys

import numpy as np
import pytest

from digseg_engine import Engine
from digseg_engine.errors import BackendError, UsageError
from digseg_engine.runtime import backends
from digseg_engine.runtime.backends import ort_backend, torch_backend
from digseg_engine.runtime.choice import check_golden
from digseg_engine.runtime.machine import cores
from digseg_engine.runtime.source import open_source

PICTURE = np.random.default_rng(0).integers(0, 255, (70, 50, 3), np.uint8)
PROMPTS = ["red circle", "water"]


@pytest.fixture(scope="module")
def eager(nano_models):
    return Engine.load(nano_models.checkpoint, "torch").segment(PICTURE, PROMPTS).logits


def relative(got, want):
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-4), ("fp16", 5e-2)])
def test_onnxruntime_agrees_with_torch(nano_models, eager, precision, limit):
    engine = Engine.load(getattr(nano_models, precision), "onnxruntime")
    assert relative(engine.segment(PICTURE, PROMPTS).logits, eager) < limit
    assert "CPUExecutionProvider" in engine.backend.detail
    assert ("widened to fp32" in engine.backend.detail) == (precision == "fp16")


@pytest.mark.long
def test_torch_compile_is_right(pico_folder):
    """One compilation, of the smallest model and picture."""
    compiled, plain = (Engine.load(pico_folder, name) for name in ("torch-compile", "torch"))
    pixels = np.random.default_rng(1).uniform(-1, 1, (1, 3, 16, 16)).astype(np.float32)
    assert relative(compiled.logits(pixels, PROMPTS[:1]), plain.logits(pixels, PROMPTS[:1])) < 1e-4


@pytest.mark.long
def test_torch_compile_agrees_at_several_shapes(nano_models):
    compiled = Engine.load(nano_models.checkpoint, "torch-compile")
    plain = Engine.load(nano_models.checkpoint, "torch")
    pixels = np.random.default_rng(1).uniform(-1, 1, (2, 3, 64, 96)).astype(np.float32)
    for cut in (pixels, pixels[:1, :, :, :64]):
        for prompts in (PROMPTS, PROMPTS[:1]):
            assert relative(compiled.logits(cut, prompts), plain.logits(cut, prompts)) < 1e-4


@pytest.mark.long
def test_compiled_masks_of_a_picture_that_is_not_square_are_those_of_the_model(nano_models):
    compiled, plain = (Engine.load(nano_models.checkpoint, name) for name in ("torch-compile", "torch"))
    for rows in (64, 33, 50):
        got, want = (engine.segment(PICTURE[:rows], PROMPTS, size=64).logits for engine in (compiled, plain))
        assert got.shape == want.shape and relative(got, want) < 1e-4


def test_every_backend_sees_the_same_pixels(nano_models):
    """Masks of one picture are equal only where it lies in equally many pixels: padded to the stride, no further."""
    for model, name in ((nano_models.checkpoint, "torch"), (nano_models.fp32, "onnxruntime")):
        result = Engine.load(model, name).segment(PICTURE[:33], PROMPTS, size=64)
        assert result.logits.shape[1:] == (24, 32) and result.frame.working == (48, 64)  # 42 rows of content


def test_a_bundle_takes_its_checkpoint_along(nano_models, eager):
    engine = Engine.load(nano_models.fp32, "torch", checkpoint=nano_models.checkpoint)
    assert np.array_equal(engine.segment(PICTURE, PROMPTS).logits, eager)
    error, iou = check_golden(engine.backend, engine.source.golden)
    assert error < 1e-3 and iou > 0.999


@pytest.mark.parametrize(
    ("model", "backend", "words"),
    [
        ("fp32", "torch", "needs a checkpoint.*checkpoint=DIRECTORY"),
        ("checkpoint", "onnxruntime", "needs a bundle.*digseg-export"),
        ("fp32", "onnxruntime-cuda", "CUDAExecutionProvider"),
        ("fp16", "onnxruntime-tensorrt", "TensorrtExecutionProvider"),
    ],
)
def test_a_backend_asked_for_by_name_is_never_replaced(nano_models, model, backend, words):
    if backend.startswith("onnxruntime-") and ort_backend.probe(backend).usable:
        pytest.skip("this machine can run it")
    with pytest.raises(BackendError, match=words):
        Engine.load(getattr(nano_models, model), backend)


def test_unusable_backends_say_why_and_what_to_install(monkeypatch):
    found = ort_backend.probe("onnxruntime-cuda")
    if not found.usable:
        assert "CUDAExecutionProvider" in found.reason and "[gpu]" in found.install
    monkeypatch.setitem(sys.modules, "torch", None)
    found = torch_backend.probe("torch")
    assert not found.usable and "[train]" in found.install
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert not ort_backend.probe().usable


def test_a_device_that_is_not_there_is_an_error(nano_models, monkeypatch):
    monkeypatch.setenv("DIGSEG_DEVICE", "cuda:7")
    assert "cuda:7" in torch_backend.probe("torch").reason
    with pytest.raises(BackendError, match=r"DIGSEG_DEVICE asks for 'cuda:7'"):
        Engine.load(nano_models.checkpoint, "torch")


def test_a_provider_that_is_not_the_one_asked_for_is_an_error():
    import onnxruntime

    class Elsewhere:
        get_available_providers = staticmethod(lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
        InferenceSession = staticmethod(lambda model, options, providers, enable_fallback: Session())

    class Session:
        def get_providers(self):
            return ["CPUExecutionProvider"]

    with pytest.raises(BackendError, match="runs on CPUExecutionProvider, expected CUDAExecutionProvider"):
        ort_backend.create_session(Elsewhere, b"", onnxruntime.SessionOptions(), "CUDAExecutionProvider")


def test_onnxruntime_prints_nothing_and_tries_once(capfd):
    """By itself it goes on with the CPU, and says so on standard output."""
    import onnxruntime

    body = ort_backend.PROBE.replace(b"Identity", b"Ident\xffty")
    with pytest.raises(BackendError, match="cannot load a one-node graph"):
        ort_backend.create_session(onnxruntime, body, ort_backend.session_options(onnxruntime))
    assert capfd.readouterr().out == ""


def test_registering_a_backend(nano_models):
    from nano_models import Shifted, kind

    with pytest.raises(UsageError, match="exists"):
        backends.register(kind("torch", Shifted))
    backends.register(kind("mine", Shifted))
    try:
        with pytest.raises(BackendError, match="backend mine cannot be used here"):  # it is wrong
            Engine.load(nano_models.fp32, "mine")
    finally:
        backends.unregister("mine")
    with pytest.raises(UsageError, match="no backend 'mine'"):
        backends.unregister("mine")


def test_a_source_that_is_none(nano_models, tmp_path):
    with pytest.raises(BackendError, match=r"is not a checkpoint: digseg\.json not found"):
        open_source(nano_models.fp32, tmp_path)


def test_importing_the_runtime_needs_no_torch():
    modules = "digseg_engine.runtime.engine, digseg_engine.runtime.choice, digseg_engine.cli"
    code = f"import sys; sys.modules['torch'] = None; import {modules}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_brief_engine_gives_the_same_masks(nano_models):
    picture = np.random.default_rng(3).integers(0, 255, (64, 48, 3), dtype=np.uint8)
    usual, brief, many = (Engine.load(nano_models.fp16, "onnxruntime", pictures=n) for n in (None, 1, 10**6))
    assert [engine.source.brief for engine in (usual, brief, many)] == [False, True, False]
    one, other = (engine.segment(picture, ["red", "a star"]) for engine in (usual, brief))
    assert np.abs(one.logits - other.logits).max() < 1e-4 * np.abs(one.logits).max()
    assert (one.masks == other.masks).mean() > 0.9999


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity") or cores() < 2, reason="needs two cores to leave one out")
def test_a_bound_process_takes_no_more_threads_than_cores():
    code = (
        "import os, onnxruntime\n"
        "from digseg_engine.runtime.backends import ort_backend\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "print(ort_backend.session_options(onnxruntime).intra_op_num_threads)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "1"
