"""Plans of TensorRT-RTX at run time: which folders are opened, what the real runtime says without a GPU, and what the backend
asks of the library, told by stand-ins that have the names of the real classes and no others."""

import json
import shutil
import types

import numpy as np
import pytest
import torch
from conftest import run_command
from PIL import Image
from small_graphs import small_bundle
from test_tensorrt import FakeDriver

from digseg_engine.bundle import MANIFEST, Bundle, finish
from digseg_engine.contract import GRAPHS, TEXT_ENCODER
from digseg_engine.errors import BackendError, BundleError, InputError, VerificationError
from digseg_engine.runtime import plans as plan_folders
from digseg_engine.runtime.backends import Usable, tensorrt_rtx
from digseg_engine.runtime.backends.tensorrt_rtx import TensorrtRtxBackend
from digseg_engine.runtime.choice import Task, verdict_key
from digseg_engine.runtime.cuda_driver import Device, Driver
from digseg_engine.runtime.engine import Engine
from digseg_engine.runtime.source import Source, open_source
from digseg_export import to_tensorrt_rtx
from digseg_export.plan_builder import BuildOptions
from digseg_export.to_tensorrt_rtx import build_plans

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed (extra tensorrt-rtx)")


class Ampere(FakeDriver):
    """Host memory behind the driver's calls, and a GPU that the plans are for."""

    def describe(self):
        return Device("Test RTX", "8.6", "13.0")


def has_gpu():
    try:
        Driver()
    except BackendError:
        return False
    return True


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A bundle and its plans for 86 and 120, built once."""
    room = tmp_path_factory.mktemp("built")
    bundle = small_bundle(room / "b")
    build_plans(bundle.folder, room / "p", (86, 120), BuildOptions(), lambda text: None)
    return bundle, room / "p"


@pytest.fixture
def plans(built, tmp_path):
    """A copy of the plans."""
    shutil.copytree(built[1], tmp_path / "p")
    return tmp_path / "p"


def edited(folder, **changes):
    """The manifest with other words."""
    body = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**body, **changes}))


def version(text):
    return {"name": "tensorrt-rtx", "version": text}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: edited(p, bundle="0" * 64), "were built of another bundle than"),
        (lambda p: edited(p, library=version("1.6.2.1")), r"were built by tensorrt-rtx 1\.6\.2\.1; .* is here"),
        (
            lambda p: edited(p, library={"name": "other", "version": trt.__version__}),
            "are for 'other', not for tensorrt-rtx",
        ),
        (lambda p: edited(p, format="digseg.plans/9"), r"have format 'digseg\.plans/9', this release reads"),
        (lambda p: edited(p, targets=[89, 120]), r"are for compute capability 89, 120, and Test RTX has 8\.6"),
        (lambda p: edited(p, targets="86"), "is none of a folder of plans"),
        (lambda p: edited(p, files={}), "is none of a folder of plans"),
        (lambda p: (p / MANIFEST).unlink(), r"manifest\.json cannot be read: No such file"),
        (lambda p: (p / MANIFEST).write_text("["), "is none of a folder of plans"),
        (lambda p: (p / "text_encoder.plan").unlink(), r"text_encoder\.plan cannot be read"),
        (lambda p: (p / "text_encoder.plan").write_bytes(b"x"), r"text_encoder\.plan is damaged: SHA-256"),
    ],
)
def test_a_folder_that_does_not_fit_is_one_line(built, plans, change, words):
    change(plans)
    with pytest.raises(BackendError, match=words) as caught:
        TensorrtRtxBackend(built[0], plans, driver=Ampere())
    assert "\n" not in str(caught.value) and (
        "digseg-export --bundle" in str(caught.value) or "copy" in str(caught.value)
    )


def test_the_same_release_with_another_build_number_is_taken(built, plans):
    edited(plans, library=version(".".join([*trt.__version__.split(".")[:3], "9999"])))
    plan_folders.open_plans(plans, built[0], "tensorrt-rtx", trt.__version__)


def test_the_real_runtime_refuses_what_is_no_plan_though_its_hash_is_right(built, plans):
    (plans / "text_encoder.plan").write_bytes(b"no plan" * 100)
    body = json.loads((plans / MANIFEST).read_text())
    (plans / MANIFEST).unlink()
    finish(plans, {name: value for name, value in body.items() if name != "files"})
    with pytest.raises(BackendError, match=r"text_encoder\.plan could not be deserialised: .*magicTag") as caught:
        TensorrtRtxBackend(built[0], plans, driver=Ampere())
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(has_gpu(), reason="there is a GPU")
def test_without_a_gpu_the_real_runtime_says_so(built):
    with pytest.raises(BackendError, match=r"text_encoder\.plan could not be deserialised: .*CUDA driver version"):
        TensorrtRtxBackend(*built, driver=Ampere())
    with pytest.raises(BackendError, match=r"no NVIDIA driver on this machine \(libcuda"):
        TensorrtRtxBackend(*built)
    usable = tensorrt_rtx.probe()
    assert not usable.usable and "plans can be built here and run elsewhere" in usable.reason
    assert tensorrt_rtx.can_build().usable and "75, 80, 86, 89, 120" in tensorrt_rtx.can_build().detail


def test_a_gpu_that_the_library_is_not_for_is_named(monkeypatch):
    hopper = types.SimpleNamespace(describe=lambda: Device("H100", "9.0", "13.0"))
    monkeypatch.setattr(tensorrt_rtx, "Driver", lambda: hopper)
    assert "H100 has compute capability 9.0, none that TensorRT-RTX is for" in tensorrt_rtx.probe().reason


def test_plans_are_never_taken_from_inside_a_bundle(built, tmp_path):
    shutil.copytree(built[0].folder, tmp_path / "b")
    shutil.copytree(built[1], tmp_path / "b" / "plans")
    with pytest.raises(BundleError, match="holds 'plans', which its manifest does not list"):
        open_source(tmp_path / "b")
    with pytest.raises(BackendError, match=r"no folder of plans was named; pass engines=FOLDER"):
        tensorrt_rtx.create(Source(built[0], None))


def test_the_choice_is_made_anew_for_other_plans_and_an_engine_travels_with_its_own(built, plans):
    bundle = built[0]
    keys = {verdict_key(Source(bundle, None, engines=folder), Task(64)) for folder in (None, built[1], plans)}
    assert len(keys) == 2  # a copy is the same plans
    edited(plans, created="later")
    keys.add(verdict_key(Source(bundle, None, engines=plans), Task(64)))
    assert len(keys) == 3
    assert Source(bundle, None, engines=plans).portable().reopened().engines == plans
    assert Source(bundle, None, engines=plans / "gone").plans == str(
        plans / "gone"
    )  # whoever opens it says what is wrong


class Standin:
    """An object with the names of a real class of the library and no others."""

    def __init__(self, real, log, **answers):
        self.__dict__.update(_real=real, _log=log, _answers=answers)

    def __getattr__(self, name):
        assert hasattr(self._real, name), f"{self._real.__name__} has no {name}"
        answer = self._answers.get(name)
        if answer is not None and not callable(answer):
            return answer

        def call(*arguments):
            self._log.append((name, *arguments))
            return answer(*arguments) if answer else None

        return call

    def __setattr__(self, name, value):
        assert hasattr(self._real, name), f"{self._real.__name__} has no {name}"
        self._log.append((name, value))


@pytest.mark.parametrize("off", [0.0, 1.0])
def test_where_a_gpu_is_at_hand_plans_are_held_to_the_golden_sample_before_they_are_kept(
    nano_models, tmp_path, monkeypatch, off
):
    """The real builder; a stand-in for the GPU answers what the bundle expects, or something else."""
    golden, opened = open_source(nano_models.fp16).golden, []
    text = np.zeros((3, 2, 2, 8, 8), np.float16), np.zeros((3, 2, 2, 8, 8), np.float16)
    answering = types.SimpleNamespace(name="tensorrt-rtx", encode_text=lambda ids, mask: tuple(t[: len(ids)] for t in text),
                                      encode_image=lambda image: image, presence=lambda *asked: None,
                                      decode=lambda *asked: golden.logits + off)  # fmt: skip
    monkeypatch.setattr(tensorrt_rtx, "probe", lambda: Usable("tensorrt-rtx", True, ""))
    monkeypatch.setattr(to_tensorrt_rtx, "Driver", Ampere)
    monkeypatch.setattr(tensorrt_rtx, "TensorrtRtxBackend", lambda bundle, folder: opened.append(folder) or answering)
    monkeypatch.setattr(Bundle, "graphs", {"text_encoder": TEXT_ENCODER})
    if off:
        with pytest.raises(VerificationError, match=r"are wrong: error .* on the golden sample.*nothing was kept"):
            build_plans(nano_models.fp16, tmp_path / "p", (86,), BuildOptions(), lambda text: None)
        assert list(tmp_path.iterdir()) == []
        return
    made = build_plans(nano_models.fp16, tmp_path / "p", (86,), BuildOptions(), lambda text: None)
    assert "right on the golden sample: relative error 0.00e+00, mask IoU 1.0000" in made.answer
    assert opened and opened[0] != tmp_path / "p" and (tmp_path / "p").is_dir()  # asked before it was put in place
    made = build_plans(nano_models.fp16, tmp_path / "p", (120,), BuildOptions(), lambda text: None)
    assert "not run here: the plans in" in made.answer and "Test RTX has 8.6" in made.answer


SHAPES = {"text_keys": (2, 2, 2, 4, 8), "text_values": (2, 2, 2, 8, 4), "encoding": (1, 4, 8, 8), "presence": (1, 2),
          "logits": (1, 2, 8, 8)}  # fmt: skip


@pytest.fixture
def backend(built, monkeypatch):
    """The backend over stand-ins for what only a GPU has, and what it asked of them."""
    log, names = [], [tensor.name for spec in GRAPHS.values() for tensor in (*spec.inputs, *spec.outputs)]

    def cache():
        return Standin(trt.IRuntimeCache, log, serialize=lambda: b"kernels", deserialize=lambda body: True)

    def context(config):
        return Standin(trt.IExecutionContext, log, set_input_shape=lambda *a: True, infer_shapes=lambda: [],
                       get_tensor_shape=SHAPES.get, execute_async_v3=lambda stream: True)  # fmt: skip

    def engine(plan):
        return Standin(trt.ICudaEngine, log, num_io_tensors=len(names), get_tensor_name=lambda i: names[i],
                       create_execution_context=context, create_runtime_config=lambda: Standin(
                           trt.IRuntimeConfig, log, create_runtime_cache=cache))  # fmt: skip

    module = types.ModuleType("tensorrt_rtx")
    for name in ("ILogger", "CudaGraphStrategy", "__version__"):
        setattr(module, name, getattr(trt, name))
    module.Runtime = lambda logger: Standin(trt.Runtime, log, deserialize_cuda_engine=engine)

    def make():
        log.clear()
        return TensorrtRtxBackend(*built, trt=module, driver=Ampere())

    return make, log


def test_kernels_are_kept_in_the_closed_cache_and_given_to_the_next_start(backend, own_cache):
    make, log = backend
    first = make()
    assert ("cuda_graph_strategy", trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE) in log
    assert [entry[0] for entry in log].index("set_runtime_cache") < [entry[0] for entry in log].index(
        "create_execution_context"
    )
    assert not any(entry[0] == "deserialize" for entry in log)
    keys, values = first.encode_text(np.ones((2, 8), np.int64), np.ones((2, 8), bool))
    assert keys.shape == SHAPES["text_keys"] and keys.dtype == np.float16
    image, mask = np.zeros((1, 3, 64, 64), np.float32), np.ones((2, 8), bool)
    for ask, shape in ((first.presence, SHAPES["presence"]), (first.decode, SHAPES["logits"])):
        assert ask(first.encode_image(image), keys, values, mask).shape == shape
    written = [entry for entry in log if entry[0] == "serialize"]
    first.decode(first.encode_image(image), keys, values, mask)
    assert [entry for entry in log if entry[0] == "serialize"] == written  # a shape that ran before has nothing new
    files = sorted(own_cache.glob("tensorrt-rtx/*/*.kernels"))
    assert {path.name for path in files} == {spec.file.replace("onnx", "kernels") for spec in GRAPHS.values()}
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600} and files[0].read_bytes() == b"kernels"
    make()
    assert [entry for entry in log if entry[0] == "deserialize"] == [("deserialize", b"kernels")] * 4
    files[0].chmod(0o666)
    with pytest.raises(BackendError, match="can be written by others"):
        make()


def test_a_tensor_on_the_gpu_is_bound_where_it_lies(backend, monkeypatch):
    make, log = backend
    made, device, order = make(), torch.device("cuda", 0), []

    class Tensor:
        def __init__(self, name, shape):
            self.name, self.shape, self.device = name, shape, device

        def contiguous(self):
            return self

        def data_ptr(self):
            return {"picture": 4096, "logits": 8192}[self.name]

        def record_stream(self, stream):
            order.append(f"{self.name} kept for {stream.name}")

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            order.append(f"{self.name} waits for {other.name}")

    monkeypatch.setattr(torch.cuda, "current_stream", lambda where: Stream("caller"))
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda stream, where: Stream("ours"))
    monkeypatch.setattr(torch, "empty", lambda *shape, device: Tensor("logits", shape))
    text = np.zeros(SHAPES["text_keys"], np.float16), np.zeros(SHAPES["text_values"], np.float16), np.ones((2, 8), bool)
    log.clear()
    encoding = made.encode_image(Tensor("picture", (1, 3, 64, 64)))
    answer = made.decode_tensor(encoding, *text)
    assert answer.name == "logits" and answer.shape == SHAPES["logits"] and encoding.shape == SHAPES["encoding"]
    waits = ["ours waits for caller", "caller waits for ours"]
    assert order == [*waits, "picture kept for ours", *waits, "logits kept for ours"]
    bound = [entry[1:] for entry in log if entry[0] == "set_tensor_address"]
    assert dict(bound)["image"] == 4096 and dict(bound)["logits"] == 8192
    assert [place for name, place in bound if name == "encoding"] == [
        encoding.pointer
    ] * 2  # made and asked where it lies
    with pytest.raises(InputError, match="outside the profile"):
        made.encode_image(Tensor("picture", (1, 3, 512, 64)))
    elsewhere = Tensor("picture", (1, 3, 64, 64))
    elsewhere.device = torch.device("cuda", 1)
    with pytest.raises(BackendError, match="takes tensors on cuda:0, got one on cuda:1"):
        made.encode_image(elsewhere)


@pytest.mark.skipif(has_gpu(), reason="there is a GPU")
def test_the_command_takes_plans_and_says_why_they_do_not_run(nano_models, built, tmp_path):
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "photo.png")
    asked = ["digseg", "segment", "photo.png", "-p", "red", "-b", str(nano_models.fp16), "--engines", str(built[1])]
    done = run_command(*asked, "--backend", "tensorrt-rtx", cwd=tmp_path)
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 1 and "were built of another bundle than" in line
    engine = Engine.load(nano_models.fp16, engines=built[1])
    assert any(text.startswith("tensorrt-rtx: ") and "no NVIDIA driver" in text for text in engine.fallbacks)
    assert Engine.load(nano_models.fp16).fallbacks == ()
