"""The order of copies, streams, events and runs on a GPU, told by stand-ins that write down what they are asked."""

import contextlib
import ctypes
import types

import numpy as np
import pytest
import torch

from digseg_engine.errors import BackendError, InputError
from digseg_engine.runtime.backends import ort_cuda
from digseg_engine.runtime.backends.cuda_graphs import CudaGraph, Replayed
from digseg_engine.runtime.backends.ort_cuda import OrtCudaBackend, run_bound
from digseg_engine.runtime.cuda_driver import ARGUMENTS, Driver
from digseg_engine.runtime.profile import Profile, Range


class Stream:
    def __init__(self, log, name):
        self.log, self.name, self.cuda_stream = log, name, 1234

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event):
        self.log.append(f"{self.name} waits for event")

    def synchronize(self):
        self.log.append(f"host waits for {self.name}")


class Tensor:
    """A picture on a GPU as far as a binding looks at it."""

    dtype = torch.float32

    def __init__(self, log, name, shape, contiguous=True, index=0):
        self.log, self.name, self.shape, self._contiguous = log, name, shape, contiguous
        self.device = torch.device("cuda", index)

    def is_contiguous(self):
        return self._contiguous

    def stride(self):
        return (0,)

    def contiguous(self):
        if self._contiguous:
            return self
        self.log.append(f"copy of {self.name} on caller")
        return Tensor(self.log, f"{self.name} copy", self.shape)

    def data_ptr(self):
        return 4096

    def record_stream(self, stream):
        self.log.append(f"{self.name} recorded on {stream.name}")


class Session:
    def __init__(self, log):
        self.log = log

    def io_binding(self):
        return types.SimpleNamespace(bind_input=lambda *a: None, bind_output=lambda *a: None)

    def run_with_iobinding(self, binding, options):
        self.log.append("run")


@pytest.fixture
def bound(monkeypatch):
    """An `OrtCudaBackend` without a GPU, and what it did."""
    log = []
    caller = Stream(log, "caller")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: caller)
    monkeypatch.setattr(torch, "empty", lambda *shape, device: Tensor(log, "logits", shape))
    monkeypatch.setattr(torch, "from_numpy", lambda array: types.SimpleNamespace(
        to=lambda device: Tensor(log, f"text {array.ndim}", array.shape)))  # fmt: skip
    backend = OrtCudaBackend.__new__(OrtCudaBackend)
    backend.name, backend.index, backend._profile, backend._ratio = "onnxruntime-cuda", 0, None, 2
    backend._stream, backend._segmenter, backend._text_dtype = Stream(log, "ort"), Session(log), np.float32
    options = types.SimpleNamespace(add_run_config_entry=lambda *a: None)
    backend._runtime = types.SimpleNamespace(RunOptions=lambda: options)
    return backend, log


def ask(backend, picture, k=2):
    return backend.segment_tensor(picture, np.zeros((k, 1)), np.zeros((k, 1, 1)), np.ones((k, 4), bool))


def test_a_picture_is_made_contiguous_before_the_run_may_start(bound):
    backend, log = bound
    ask(backend, Tensor(log, "picture", (1, 3, 32, 48), contiguous=False))
    order = [
        log.index(step) for step in ("copy of picture on caller", "ort waits for caller", "run", "caller waits for ort")
    ]
    assert order == sorted(order)
    kept = {line.removesuffix(" recorded on ort") for line in log if line.endswith("recorded on ort")}
    assert {"picture copy", "logits"} <= kept and "picture" not in kept  # the copy is what must not be given away


def test_without_a_shared_stream_the_host_waits_after_the_copy(bound):
    backend, log = bound
    backend._stream = None
    ask(backend, Tensor(log, "picture", (1, 3, 32, 48), contiguous=False))
    assert log == ["copy of picture on caller", "host waits for caller", "run"]


def test_device_profile_and_failures_of_the_tensor_path(bound):
    backend, log = bound
    with pytest.raises(BackendError, match="on cuda:0, got one on cuda:1"):
        ask(backend, Tensor(log, "picture", (1, 3, 32, 48), index=1))
    backend._profile = Profile({axis: Range(1, 1, 64) for axis in "BLHW"} | {"K": Range(1, 1, 1)})
    with pytest.raises(InputError, match=r"2 prompts \(K\)"):
        ask(backend, Tensor(log, "picture", (1, 3, 32, 48)))
    backend._profile = None
    backend._segmenter.run_with_iobinding = lambda *a: (_ for _ in ()).throw(RuntimeError("CUDA failure 2\nmore"))
    with pytest.raises(
        BackendError, match=r"onnxruntime-cuda failed on a picture of shape \[1, 3, 32, 48\].*CUDA failure 2;"
    ):
        ask(backend, Tensor(log, "picture", (1, 3, 32, 48)))


def test_what_is_not_contiguous_is_never_bound():
    with pytest.raises(BackendError, match="cannot be bound"):
        run_bound(Session([]), {"image": torch.zeros(2, 3).T}, "logits", torch.zeros(1))


def test_provider_options(monkeypatch, own_cache):
    assert ort_cuda.cuda_options(1, 77) == {"device_id": "1", "use_tf32": "0", "user_compute_stream": "77"}
    spans = {
        "B": Range(1, 1, 2),
        "K": Range(1, 5, 16),
        "L": Range(8, 16, 77),
        "H": Range(64, 96, 128),
        "W": Range(64, 64, 64),
    }
    sizes = {"S": 3, "heads": 4, "d": 16, "Co": 24}
    found = ort_cuda.tensorrt_options(2, Profile(spans), ort_cuda.SEGMENTER, sizes, "digest")
    assert found["device_id"] == "2" and found["trt_engine_cache_enable"] == found["trt_timing_cache_enable"] == "1"
    folder = own_cache / "onnxruntime-tensorrt" / "digest"
    assert found["trt_engine_cache_path"] == found["trt_timing_cache_path"] == str(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert found["trt_profile_min_shapes"].startswith("image:1x3x64x64,text_keys:1x3x4x16x8,")
    assert found["trt_profile_max_shapes"].endswith("token_mask:16x77")
    backend = OrtCudaBackend.__new__(OrtCudaBackend)
    backend.index, backend._stream, backend._profile = 0, None, None
    backend._sizes, backend._digest, backend._provider = sizes, "digest", ort_cuda.TENSORRT
    assert [name for name, _ in backend.providers(ort_cuda.SEGMENTER)] == [ort_cuda.TENSORRT, ort_cuda.CUDA]


class Cuda:
    """`torch.cuda` as far as graphs use it; a graph's replay runs the function again."""

    def __init__(self):
        self.log, self.here = [], Stream([], "caller")
        self.here.log = self.log

    def device(self, where):
        return contextlib.nullcontext()

    stream = device

    def current_stream(self, where):
        return self.here

    def Stream(self, where):  # noqa: N802
        return Stream(self.log, "side")

    def CUDAGraph(self):  # noqa: N802
        return types.SimpleNamespace(replay=lambda: self.log.append("replay"))

    def graph(self, graph, capture_error_mode):
        self.log.append(f"capture, {capture_error_mode}")
        return contextlib.nullcontext()

    def Event(self):  # noqa: N802
        return types.SimpleNamespace(record=lambda stream: self.log.append(f"event on {stream.name}"),
                                     synchronize=lambda: self.log.append("host waits for event"))  # fmt: skip


def test_replays_of_two_streams_take_turns_on_the_gpu():
    cuda = Cuda()
    graph = CudaGraph(lambda x: 2 * x, (torch.ones(2),), cuda)
    assert "capture, thread_local" in cuda.log  # what other threads do is their own affair
    cuda.log.clear()
    for name in ("first", "second"):
        cuda.here = Stream(cuda.log, name)
        graph.replay((torch.ones(2),))
    turn = ["{} waits for event", "replay", "event on {}"]
    assert cuda.log == [step.format(name) for name in ("first", "second") for step in turn]


def test_a_graph_that_leaves_is_finished_first_and_few_shapes_are_remembered():
    cuda = Cuda()
    run = Replayed(lambda x: x, lambda f, inputs: CudaGraph(f, inputs, cuda), most=1)
    for side in (1, 1, 2, 2):
        run(torch.zeros(side))
    assert cuda.log.count("host waits for event") == 1
    for side in range(3, 300):
        run(torch.zeros(side))
    assert len(run._met) <= 64


def test_sizes_over_two_gib_reach_the_driver_whole():
    calls = {}

    class Library:
        pass

    def answer(name):
        def call(*arguments):
            calls[name] = arguments
            return 0

        return call

    for name, types_ in ARGUMENTS.items():
        setattr(Library, name, staticmethod(ctypes.CFUNCTYPE(ctypes.c_int, *types_)(answer(name))))
    driver = Driver(3, Library)
    assert calls["cuDeviceGet"][1] == 3
    large = types.SimpleNamespace(ctypes=types.SimpleNamespace(data=64), nbytes=5 << 30)
    driver.upload(1 << 40, large, 7)
    assert calls["cuMemcpyHtoDAsync_v2"] == (1 << 40, 64, 5 << 30, 7)
    driver.download(large, 1 << 40, 7)
    assert calls["cuMemcpyDtoHAsync_v2"] == (64, 1 << 40, 5 << 30, 7)
    driver.allocate(5 << 30)
    assert calls["cuMemAlloc_v2"][1] == 5 << 30
