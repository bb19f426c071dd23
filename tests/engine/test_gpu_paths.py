"""What is made for GPUs, in the parts that a CPU can run: graph bookkeeping, I/O binding, half precision, the benchmark."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

from digseg_engine import Engine
from digseg_engine.runtime.backends import ort_backend, ort_cuda, torch_backend
from digseg_engine.runtime.backends.cuda_graphs import Replayed
from digseg_engine.runtime.backends.ort_backend import OrtBackend
from digseg_engine.runtime.backends.ort_cuda import bind
from digseg_engine.runtime.backends.ort_gpu import OrtGpuBackend
from digseg_engine.runtime.choice import check_golden, within_limits
from digseg_engine.runtime.source import open_source


class Recorded:
    """Stands in for a captured graph: remembers the function and counts."""

    made = 0

    def __init__(self, function, inputs):
        Recorded.made += 1
        self.function, self.replays = function, 0

    def replay(self, inputs):
        self.replays += 1
        return self.function(*inputs)

    def close(self):
        pass


def double(x, y):
    return 2 * x + y


def test_a_shape_is_captured_when_it_comes_again(monkeypatch):
    monkeypatch.setattr(Recorded, "made", 0)
    run = Replayed(double, Recorded, most=2)
    for side in (3, 3, 3, 4, 3):
        x = torch.randn(side)
        assert torch.equal(run(x, x), 3 * x)
    assert Recorded.made == 1  # the shape met once has no graph
    (graph,) = run._graphs.values()
    assert graph.replays == 3
    for side in (4, 5, 5):
        run(torch.zeros(side), torch.zeros(side))
    shapes = [key[0][0] for key in run._graphs]
    assert shapes == [(4,), (5,)]  # the least recently used one has left
    assert torch.equal(run(torch.ones(4).double(), torch.ones(4).double()), 3 * torch.ones(4).double())  # another type
    assert len(run._graphs) == 2


def test_a_refused_capture_goes_on_without_graphs():
    def refuse(function, inputs):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    run = Replayed(double, refuse)
    for _ in range(3):
        assert torch.equal(run(torch.ones(2), torch.ones(2)), 3 * torch.ones(2))
    assert run.refused == "operation not permitted when stream is capturing"


class OnHost(OrtGpuBackend):
    """The backend of GPUs on the CPU's provider, whose binding is the same."""

    place = "cpu"


@pytest.mark.parametrize("model", ["fp32", "with_presence"])
def test_an_encoding_that_stays_where_it_was_written_is_asked_in_place(nano_models, with_presence, model):
    source = open_source(nano_models.fp32 if model == "fp32" else with_presence.bundle)
    plain, bound = OrtBackend(source), OnHost(source)
    engine = Engine(source, plain)
    text = engine.prompts.fold(["red", "a blue star"])
    image = np.random.default_rng(0).uniform(-1, 1, (3, 3, 32, 48)).astype(np.float32)
    want, kept = plain.encode_image(image), bound.encode_image(image)
    assert (len(kept), kept.shape, kept.nbytes) == (3, want.shape, want.nbytes)
    for pictures in (slice(0, 3), slice(1, 2), slice(2, 3)):
        assert np.array_equal(bound.decode(kept[pictures], *text), plain.decode(want[pictures], *text))
        sure, wanted = bound.presence(kept[pictures], *text), plain.presence(want[pictures], *text)
        assert (sure is None) == (wanted is None) == (model == "fp32") and (
            sure is None or np.array_equal(sure, wanted)
        )


@pytest.mark.parametrize("model", ["full", "labels_only"])
def test_names_are_asked_in_place_too(folded, model):
    source = open_source(getattr(folded, model))
    plain, bound = OrtBackend(source), OnHost(source)
    image = np.random.default_rng(0).uniform(-1, 1, (3, 3, 32, 48)).astype(np.float32)
    want, kept = plain.encode_image(image), bound.encode_image(image)
    wanted = ("label_map", "logits", "presence")
    for pictures in (slice(0, 3), slice(1, 2)):
        left, right = bound.labels(kept[pictures], wanted), plain.labels(want[pictures], wanted)
        assert set(left) == set(right) == set(wanted) - ({"logits"} if model == "labels_only" else set())
        assert all(np.array_equal(left[name], right[name]) for name in left)


def test_io_binding_takes_and_fills_tensors(nano_models):
    source = open_source(nano_models.fp32)
    plain, bound = OrtBackend(source), OnHost(source)
    text = Engine(source, plain).prompts.fold(["red", "a blue star"])
    image = torch.rand(1, 3, 32, 48) * 2 - 1
    binding = bound._image.io_binding()
    bind(binding, {"image": image})
    kept = bound.kept(bound._image, binding)
    want = plain.decode(plain.encode_image(image.numpy()), *text)
    binding, result = bound._masks.io_binding(), torch.full(want.shape, torch.nan)
    binding.bind_input("encoding", *bound.where(kept))
    bind(binding, {name: torch.from_numpy(array) for name, array in bound.asked(1, *text).items()})
    binding.bind_output("logits", *ort_cuda._place(result))
    bound._masks.run_with_iobinding(binding)
    assert np.array_equal(result.numpy(), want)


def test_half_precision_is_close_and_leaves_the_checkpoint_alone(nano_models):
    source = open_source(nano_models.checkpoint)
    backend = torch_backend.TorchBackend(source, "torch-fp16")
    error, iou = check_golden(backend, source.golden)
    assert error > 1e-4  # it did compute in half precision; about float32's limit, by which it might never be chosen
    assert within_limits(error, iou, source.golden.allowing(backend.precision)) == (True, "")
    exact, _ = check_golden(torch_backend.TorchBackend(source, "torch"), source.golden)
    assert exact < 1e-6


def test_what_is_for_gpus_says_so(nano_models):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    found = torch_backend.probe("torch-fp16")
    assert not found.usable and "half precision is for a GPU" in found.reason
    assert not ort_backend.probe("onnxruntime-cuda").usable


def test_the_engine_benchmark_walks_on_a_cpu(nano_models, tmp_path):
    command = [sys.executable, "benchmarks/gpu.py", "--engine", str(nano_models.fp32), "--checkpoint",
               str(nano_models.checkpoint), "--dry-run", "--output", str(tmp_path)]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "engine-dry-run.json").read_text())["rows"]
    timed = {row["backend"]: row for row in rows if "picture_ms" in row}
    assert {"onnxruntime", "torch"} <= set(timed)
    assert timed["torch"]["tensor_ms"] > 0 and timed["onnxruntime"]["iou"] > 0.999
    assert {row["backend"] for row in rows if "unusable" in row} >= {"onnxruntime-cuda", "tensorrt"}
