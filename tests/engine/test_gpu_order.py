"""The order of copies, streams, events and runs on a GPU, told by stand-ins that write down what they are asked."""

import contextlib
import ctypes
import types

import numpy as np
import pytest
import torch

from digseg_engine.contract import IMAGE_ENCODER, MASK_DECODER
from digseg_engine.errors import BackendError, InputError
from digseg_engine.runtime.backends import ort_cuda
from digseg_engine.runtime.backends.cuda_graphs import CudaGraph, Replayed
from digseg_engine.runtime.backends.ort_cuda import OrtCudaBackend, bind
from digseg_engine.runtime.backends.placed import Placed
from digseg_engine.runtime.backends.tensorrt_native import Queue
from digseg_engine.runtime.backends.torch_backend import Held
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
    """A session whose binding is written down; the memory of its output is at 8192."""

    def __init__(self, log, name):
        self.log, self.name = log, name

    def get_outputs(self):
        return [types.SimpleNamespace(name="out")]

    def io_binding(self):
        value = types.SimpleNamespace(data_ptr=lambda: 8192, shape=lambda: [2, 5, 4, 6])
        return types.SimpleNamespace(
            bind_input=lambda name, *where: self.log.append(("in", name, *where)), get_outputs=lambda: [value],
            bind_output=lambda name, *where: self.log.append(("out", name, *where)),
            bind_cpu_input=lambda name, array: self.log.append(("up", name)),
            copy_outputs_to_cpu=lambda: [np.zeros((2, 2))])  # fmt: skip

    def run_with_iobinding(self, binding, options=None):
        self.log.append(f"run {self.name}")


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
    backend.name, backend.index, backend._profile, backend._cells = "onnxruntime-cuda", 0, None, 8
    backend._stream, backend._text_dtype, backend._presence = Stream(log, "ort"), np.float16, None
    backend._image, backend._masks = Session(log, "image"), Session(log, "masks")
    options = types.SimpleNamespace(add_run_config_entry=lambda *a: None)
    backend._runtime = types.SimpleNamespace(RunOptions=lambda: options)
    return backend, log


def steps(log):
    """The order of streams and runs, without what is bound."""
    return [step for step in log if isinstance(step, str)]


def ask(backend, encoding, k=2):
    return backend.decode_tensor(encoding, np.zeros((k, 1)), np.zeros((k, 1, 1)), np.ones((k, 4), bool))


def test_a_picture_is_made_contiguous_before_the_run_may_start(bound):
    backend, log = bound
    encoding = backend.encode_image(Tensor(log, "picture", (2, 3, 32, 48), contiguous=False))
    assert steps(log) == ["copy of picture on caller", "ort waits for caller", "run image", "caller waits for ort",
                          "picture copy recorded on ort"]  # fmt: skip
    assert ("out", "encoding", "cuda", 0) in log  # where ONNX Runtime finds room for it
    assert (encoding.pointer, encoding.shape, len(encoding), encoding.nbytes) == (8192, (2, 5, 4, 6), 2, 2 * 240)
    log.clear()
    logits = ask(backend, encoding[1:])
    assert logits.shape == (1, 2, 32, 48)
    assert ("in", "encoding", "cuda", 0, np.float16, (1, 5, 4, 6), 8192 + 240) in log  # the second picture, in place
    assert steps(log)[:3] == ["ort waits for caller", "run masks", "caller waits for ort"]
    assert "logits recorded on ort" in log


def test_without_a_shared_stream_the_host_waits_after_the_copy(bound):
    backend, log = bound
    backend._stream = None
    encoding = backend.encode_image(Tensor(log, "picture", (2, 3, 32, 48), contiguous=False))
    assert steps(log) == ["copy of picture on caller", "host waits for caller", "run image"]
    log.clear()
    ask(backend, encoding)
    assert steps(log) == ["host waits for caller", "run masks"]


def test_arrays_go_up_and_answers_come_down_while_the_encoding_stays(bound):
    backend, log = bound
    encoding = backend.encode_image(np.zeros((2, 3, 32, 48), np.float32))
    assert [step for step in log if step[0] == "up"] == [("up", "image")] and ("out", "encoding", "cuda", 0) in log
    log.clear()
    keys, values, mask = np.zeros((2, 1)), np.zeros((2, 1, 1)), np.ones((2, 4), bool)
    assert backend.presence(encoding, keys, values, mask) is None
    backend.decode(encoding, keys, values, mask)
    assert [step for step in log if step[0] == "up"] == [
        ("up", "text_keys"),
        ("up", "text_values"),
        ("up", "token_mask"),
    ]
    assert ("out", "out", "cpu") in log and ("in", "encoding", "cuda", 0, np.float16, (2, 5, 4, 6), 8192) in log


def test_device_profile_and_failures_of_the_tensor_path(bound):
    backend, log = bound
    with pytest.raises(BackendError, match="on cuda:0, got one on cuda:1"):
        backend.encode_image(Tensor(log, "picture", (1, 3, 32, 48), index=1))
    encoding = Placed(None, 8192, (1, 5, 4, 6), 2)
    backend._profile = Profile({axis: Range(1, 1, 64) for axis in "BLHW"} | {"K": Range(1, 1, 1)})
    with pytest.raises(InputError, match=r"2 prompts \(K\)"):
        ask(backend, encoding)
    with pytest.raises(InputError, match=r"96 columns of pixels \(W\)"):
        backend.encode_image(Tensor(log, "picture", (1, 3, 32, 96)))
    backend._profile = None
    backend._masks.run_with_iobinding = lambda *a: (_ for _ in ()).throw(RuntimeError("CUDA failure 2\nmore"))
    with pytest.raises(BackendError, match=r"onnxruntime-cuda failed on 1 pictures with 2 prompts.*CUDA failure 2;"):
        ask(backend, encoding)


def test_what_is_not_contiguous_is_never_bound():
    with pytest.raises(BackendError, match="cannot be bound"):
        bind(Session([], "image").io_binding(), {"image": torch.zeros(2, 3).T})


def test_an_encoding_is_waited_for_on_the_stream_that_asks():
    log = []
    encoding = Held(Tensor(log, "encoding", (2, 5)), "made")
    stream = Stream(log, "caller")
    encoding.on(stream)
    assert log == ["caller waits for event", "encoding recorded on caller"]
    assert Held(torch.zeros(3, 2)).on(None).shape == (3, 2) and len(Held(torch.zeros(3, 2))[1:]) == 2


class Memory:
    """A driver that counts what it gives."""

    def __init__(self):
        self.log, self.next = [], 0

    def stream(self):
        return 7

    def allocate(self, size):
        self.next += 1
        return self.log.append(("allocate", size)) or self.next

    def free(self, pointer):
        self.log.append(("free", pointer))

    def wait(self, stream):
        self.log.append(("wait", stream))

    def end_stream(self, stream):
        self.log.append(("end", stream))

    def make_current(self):
        pass


def test_the_memory_of_encodings_is_used_again_and_freed_last():
    driver = Memory()
    queue = Queue(driver)
    first, other = queue.placed((2, 3), 4), queue.placed((5, 3), 4)
    part, pointer = first[1:], first.pointer
    assert (part.pointer, len(part), part.nbytes) == (pointer + 12, 1, 12)
    del first
    assert queue.placed((2, 3), 4).pointer != pointer  # a slice holds it still
    del part
    again = [queue.placed((2, 3), 4) for _ in range(2)]
    assert {each.pointer for each in again} == {pointer, 3} and driver.log == [("allocate", 24), ("allocate", 60),
                                                                               ("allocate", 24)]  # fmt: skip
    held = [queue.placed((1, side), 4) for side in range(1, 7)]
    driver.log.clear()
    held.clear()  # more than are kept: the oldest go, after what was queued with them
    assert [step[0] for step in driver.log] == ["wait", "free"] * 2
    del queue, again
    assert ("end", 7) not in driver.log  # an encoding outlives its backend
    del other
    assert driver.log[-1] == ("end", 7) and [step[0] for step in driver.log].count("free") == driver.next


def test_provider_options(monkeypatch, own_cache):
    assert ort_cuda.cuda_options(1, 77) == {"device_id": "1", "use_tf32": "0", "user_compute_stream": "77"}
    spans = {
        "B": Range(1, 1, 2),
        "K": Range(1, 5, 16),
        "L": Range(8, 16, 77),
        "H": Range(64, 96, 128),
        "W": Range(64, 64, 64),
    }
    sizes = {"S": 3, "heads": 4, "d": 16, "Co": 24, "M": 99, "s": 16}
    found = ort_cuda.tensorrt_options(2, Profile(spans), MASK_DECODER, sizes, "digest")
    assert found["device_id"] == "2" and found["trt_engine_cache_enable"] == found["trt_timing_cache_enable"] == "1"
    folder = own_cache / "onnxruntime-tensorrt" / "digest"
    assert found["trt_engine_cache_path"] == found["trt_timing_cache_path"] == str(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert found["trt_profile_min_shapes"].startswith("encoding:1x99x4x4,text_keys:1x3x4x16x8,")
    assert found["trt_profile_max_shapes"].endswith("token_mask:16x77")
    backend = OrtCudaBackend.__new__(OrtCudaBackend)
    backend.index, backend._stream, backend._profile = 0, None, None
    backend._sizes, backend._digest, backend._provider = sizes, "digest", ort_cuda.TENSORRT
    assert [name for name, _ in backend.providers(IMAGE_ENCODER)] == [ort_cuda.TENSORRT, ort_cuda.CUDA]


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
