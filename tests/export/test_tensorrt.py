"""The TensorRT half without TensorRT: names against stand-ins of three releases, keys, profiles, reports, refusals.

No engine is built or run here; what a GPU alone can show is labelled "not run by us yet" in the documents.
"""

import ast
import ctypes
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from tensorrt_standin import VERSIONS, standin

from digseg_engine.bundle import finish, open_bundle, writing
from digseg_engine.contract import BUNDLE_FORMAT, GRAPHS, MASK_DECODER, TEXT_ENCODER, contract_json
from digseg_engine.errors import BackendError, InputError, VerificationError
from digseg_engine.runtime.backends import tensorrt_native as native
from digseg_engine.runtime.backends.tensorrt_library import TENSORRT, check_version
from digseg_engine.runtime.cuda_driver import Device, Driver, zeros
from digseg_engine.runtime.engine_store import EngineKey, differing, engine_path, explain, load_plan, store
from digseg_export import to_tensorrt
from digseg_export.inspector import borders, check_precision_of, count_types
from digseg_export.plan_builder import BuildOptions, shapes_of

ROOT = Path(__file__).resolve().parent.parent.parent
HALF, FULL = "Row major linear FP16 format", "Row major linear FP32"
HALF_10 = json.dumps({
    "Layers": [{"Name": "conv", "Outputs": [{"Name": "a", "Format/Datatype": HALF}]},
               {"Name": "softmax", "Outputs": [{"Name": "b", "Format/Datatype": FULL}]}],
    "Bindings": ["image", "logits"],
})  # fmt: skip
HALF_11 = json.dumps({
    "Layers": [{"Name": "conv", "Outputs": [{"Name": "a", "Format": "Channels-last", "DataType": "Half"}]},
               {"Name": "softmax", "Outputs": [{"Name": "b", "Format": "Linear", "DataType": "Float"}]}],
    "I/O Tensors": [{"Name": "image", "IOMode": "Input"}, {"Name": "logits", "IOMode": "Output"}],
})  # fmt: skip
SHAPES = {"encoding": (1, 40, 8, 8), "presence": (1, 2), "logits": (1, 2, 64, 64), "text_keys": (2, 3, 4, 16, 8),
          "text_values": (2, 3, 4, 8, 24)}  # fmt: skip
EVERY = sorted({"token_ids", "token_mask", "image", *SHAPES})
SPANS = {"B": (1, 1, 2), "K": (1, 5, 16), "L": (8, 16, 77), "H": (64, 128, 256), "W": (64, 128, 256)}


class FakeDriver:
    """Answers what the key asks; memory is host memory, so copies are real and only the kernels are missing."""

    def __init__(self, name="Test GPU"):
        self.name, self.held, self.freed = name, {}, []

    def describe(self):
        return Device(self.name, "8.7", "12.6")

    def make_current(self):
        pass

    def stream(self):
        return 1

    def wait(self, stream):
        pass

    def end_stream(self, stream):
        self.ended = stream

    def allocate(self, size):
        buffer = ctypes.create_string_buffer(max(size, 1))
        self.held[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def free(self, pointer):
        self.freed.append(self.held.pop(pointer))

    def upload(self, pointer, array, stream):
        ctypes.memmove(pointer, array.ctypes.data, array.nbytes)

    def download(self, array, pointer, stream):
        ctypes.memmove(array.ctypes.data, pointer, array.nbytes)


@pytest.fixture
def folder(tmp_path):
    """A bundle in form: right manifest and hashes, graphs that only a parser would open."""
    manifest = {
        "format": BUNDLE_FORMAT, "contract": contract_json(True), "presence": {"threshold": 0.0}, "precision": {"name": "fp16"},
        "shapes": {axis: dict(zip(("min", "opt", "max"), span)) for axis, span in SPANS.items()},
        "verification": {"limits": {"relative": 0.02, "iou": 0.99}},
        "model": {"image_size": 128, "stride": 16, "scales": 3, "encoding": 40,
                  "student": {"heads": 4, "width": 64, "head_width": 24}},
    }  # fmt: skip
    with writing(tmp_path / "b") as room:
        for name in [name for spec in GRAPHS.values() for name in (spec.file, spec.data_file)]:
            (room / name).write_bytes(name.encode())
        finish(room, manifest)
    return tmp_path / "b"


def script(report=HALF_10):
    """What the stand-ins must answer for a build to go through."""
    return {
        ("OnnxParser", "parse_from_file"): True,
        ("Builder", "build_serialized_network"): lambda *a: b"plan",
        ("ITimingCache", "serialize"): b"timings",
        ("EngineInspector", "get_engine_information"): report,
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_the_builder_uses_only_names_that_every_release_has(folder, version, tmp_path, monkeypatch):
    monkeypatch.setitem(TENSORRT.known_bad, (11, 1), "")  # 11.1 is refused for its results, not for its names
    trt = standin(version, script(HALF_11 if version.startswith("11") else HALF_10))
    options = BuildOptions(512, 2, tmp_path / "timing.cache")
    paths = to_tensorrt.build_engines(folder, options, lambda text: None, trt, FakeDriver())
    assert [path.name for path in paths] == [
        "text_encoder.plan",
        "image_encoder.plan",
        "presence.plan",
        "mask_decoder.plan",
    ]
    assert all(path.read_bytes() == b"plan" for path in paths)  # the plan is kept pure
    sidecar = json.loads(paths[1].with_suffix(".json").read_text())
    assert sidecar["key"]["tensorrt"] == version and sidecar["layers"] == {"fp16": 1, "fp32": 1}
    calls = {(kind, name): args for kind, name, args in trt.log}
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert calls["Builder", "create_network"] == (typed,)
    assert calls["OnnxParser", "parse_from_file"] == (str(folder / "mask_decoder.onnx"),)
    assert calls["IBuilderConfig", "set_memory_pool_limit"] == (trt.MemoryPoolType.WORKSPACE, 512 << 20)
    assert calls["IBuilderConfig", "builder_optimization_level"] == (2,)
    shapes = {args[0]: args[1:] for kind, name, args in trt.log if name == "set_shape"}
    assert shapes["image"] == ((1, 3, 64, 64), (1, 3, 128, 128), (2, 3, 256, 256))
    assert shapes["encoding"] == ((1, 40, 4, 4), (1, 40, 8, 8), (2, 40, 16, 16))  # as H and W, by the stride
    assert shapes["text_keys"] == ((1, 3, 4, 16, 8), (5, 3, 4, 16, 16), (16, 3, 4, 16, 77))
    assert shapes["text_values"][2] == (16, 3, 4, 77, 24) and shapes["token_ids"][1] == (5, 16)
    assert (tmp_path / "timing.cache").read_bytes() == b"timings"
    built = [entry for entry in trt.log if entry[1] == "build_serialized_network"]
    assert to_tensorrt.build_engines(folder, options, lambda text: None, trt, FakeDriver()) == paths
    assert [entry for entry in trt.log if entry[1] == "build_serialized_network"] == built  # found, not built again


@pytest.mark.parametrize("version", VERSIONS)
def test_the_runtime_uses_only_names_that_every_release_has(folder, version, monkeypatch):
    monkeypatch.setitem(TENSORRT.known_bad, (11, 1), "")
    every, shapes = EVERY, SHAPES
    trt = standin(version, {
        **script(HALF_11), ("ICudaEngine", "num_io_tensors"): len(every), ("ICudaEngine", "get_tensor_name"): lambda i: every[i],
        ("IExecutionContext", "set_input_shape"): True, ("IExecutionContext", "infer_shapes"): [],
        ("IExecutionContext", "get_tensor_shape"): lambda name: shapes[name], ("IExecutionContext", "execute_async_v3"): True,
    })  # fmt: skip
    driver = FakeDriver()
    to_tensorrt.build_engines(folder, BuildOptions(), lambda text: None, trt, driver)
    backend = native.TensorrtBackend(open_bundle(folder), trt, driver)
    ids, mask = np.ones((2, 8), np.int64), np.ones((2, 8), bool)
    keys, values = backend.encode_text(ids, mask)
    assert keys.shape == shapes["text_keys"] and keys.dtype == np.float16 and values.shape == shapes["text_values"]
    encoding = backend.encode_image(np.zeros((1, 3, 128, 128), np.float32))
    assert len(encoding) == 1 and encoding.nbytes == 2 * 40 * 8 * 8  # it stays where it is
    presence, logits = (ask(encoding, keys, values, mask) for ask in (backend.presence, backend.decode))
    assert logits.shape == shapes["logits"] and presence.shape == shapes["presence"]
    assert logits.dtype == presence.dtype == np.float32
    before = len(trt.log)
    with pytest.raises(InputError, match=r"512 rows of pixels \(H\) are outside the profile .*64 to 256 allowed"):
        backend.encode_image(np.zeros((1, 3, 512, 128), np.float32))
    with pytest.raises(InputError, match=r"17 prompts \(K\) are outside the profile"):
        backend.decode(encoding, *(np.repeat(array[:1], 17, 0) for array in (keys, values, mask)))
    assert len(trt.log) == before  # refused before anything ran
    assert "Test GPU" in backend.detail and "fp16" in backend.detail


def test_a_removed_name_fails_the_stand_in_test(folder):
    """The test of the test: what TensorRT 11 removed raises there, and exists in 10.x."""
    old, new = standin("10.3.0"), standin("11.1.0")
    assert old.BuilderFlag.FP16 is not None and old.NetworkDefinitionCreationFlag.EXPLICIT_BATCH is not None
    for use in (lambda: new.BuilderFlag.FP16, lambda: new.BuilderFlag.INT8,
                lambda: new.NetworkDefinitionCreationFlag.EXPLICIT_BATCH,
                lambda: new.Builder(None).platform_has_fast_fp16,
                lambda: setattr(new.Builder(None).create_builder_config(), "int8_calibrator", 1)):  # fmt: skip
        with pytest.raises(AttributeError):
            use()
    with pytest.raises(TypeError, match="set_timing_cache"):
        new.Builder(None).create_builder_config().set_timing_cache(None)
    source = (ROOT / "export/digseg_export/plan_builder.py").read_text()
    planted = source.replace("config.max_aux_streams = 0", "config.set_flag(trt.BuilderFlag.FP16)")
    planted_batch = source.replace('getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)',
                                   "trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH")  # fmt: skip
    for text in (planted, planted_batch):
        assert text != source
        for version, fails in (("10.3.0", False), ("11.1.0", True)):
            trt = standin(version, script())
            bundle = open_bundle(folder)
            shapes = shapes_of(bundle, MASK_DECODER)
            arguments = (
                trt,
                bundle.file(MASK_DECODER.file),
                shapes,
                BuildOptions(),
                lambda t: None,
            )
            build = _module_of(text).build_plan
            if fails:
                with pytest.raises(AttributeError):
                    build(*arguments)
            else:
                build(*arguments)


def _module_of(text):
    module = types.ModuleType("planted")
    sys.modules["planted"] = module
    exec(compile(text, "planted", "exec"), module.__dict__)
    return module


def test_no_removed_name_is_written_anywhere():
    removed = {"FP16", "BF16", "INT8", "FP8", "INT4", "EXPLICIT_BATCH", "int8_calibrator", "OBEY_PRECISION_CONSTRAINTS",
               "PREFER_PRECISION_CONSTRAINTS", "algorithm_selector", "device_memory_size"}  # fmt: skip
    for path in ("export/digseg_export/plan_builder.py", "export/digseg_export/to_tensorrt.py",
                 "digseg_engine/runtime/backends/tensorrt_native.py"):  # fmt: skip
        used = {node.attr for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.Attribute)}
        assert not used & removed


def test_a_failed_build_says_what_tensorrt_said(folder):
    broken = {**script(), ("OnnxParser", "parse_from_file"): False, ("OnnxParser", "num_errors"): 1,
              ("ParserError", "node_name"): "node_conv2d_3", ("ParserError", "node_operator"): "Conv",
              ("ParserError", "desc"): "unsupported type"}  # fmt: skip
    with pytest.raises(BackendError, match=r"text_encoder\.onnx \(node_conv2d_3 \(Conv\): unsupported type\)"):
        to_tensorrt.build_engines(folder, BuildOptions(), print, standin("10.3.0", broken), FakeDriver())
    nothing = {**script(), ("Builder", "build_serialized_network"): lambda *a: None}
    with pytest.raises(BackendError, match=r"could not be built .*smaller --workspace"):
        to_tensorrt.build_engines(folder, BuildOptions(), print, standin("10.3.0", nothing), FakeDriver())
    wide = {**script(HALF_10.replace("FP16", "FP32"))}
    with pytest.raises(VerificationError, match=r"no fp16 layer \(found 2 fp32\)"):
        to_tensorrt.build_engines(folder, BuildOptions(), print, standin("10.3.0", wide), FakeDriver())
    assert not list(folder.glob("engines/*/*"))  # nothing kept


@pytest.mark.parametrize(
    ("version", "words"),
    [("10.2.0", "too old"), ("8.6.1", "too old"), ("11.1.0", "#4813"), ("11.2.1", "refused")],
)
def test_bad_versions_are_refused(version, words):
    with pytest.raises(BackendError, match=words):
        check_version(TENSORRT, version)
    assert check_version(TENSORRT, "10.3.0") == (10, 3) and check_version(TENSORRT, "11.4.0.106") == (11, 4)


def test_engines_are_kept_under_a_key_and_a_miss_is_explained(folder):
    bundle = open_bundle(folder)
    key = native.engine_key(bundle, MASK_DECODER, "10.3.0", FakeDriver())
    path = store(MASK_DECODER, b"plan", key, {})
    assert path == engine_path(key, MASK_DECODER) and not list(
        folder.glob("engines*")
    )  # a bundle never holds machine code
    assert load_plan(path, key) == b"plan"
    other = native.engine_key(bundle, MASK_DECODER, "10.16.1", FakeDriver("Other GPU"))
    assert other.digest != key.digest
    with pytest.raises(BackendError, match="no engine for this machine"):
        load_plan(engine_path(other, MASK_DECODER), other)
    assert explain(MASK_DECODER, key) == [f"{key.digest}/mask_decoder: fits this machine"]
    (line,) = explain(MASK_DECODER, other)
    assert (
        "gpu: built for 'Test GPU', here 'Other GPU'" in line and "tensorrt: built for '10.3.0', here '10.16.1'" in line
    )
    assert "no engine of text_encoder.onnx" in explain(TEXT_ENCODER, key)[0]
    with pytest.raises(BackendError, match="built for something else"):
        load_plan(path, other)
    path.write_bytes(b"pl4n")
    with pytest.raises(BackendError, match="damaged"):
        load_plan(path, key)


def test_every_field_of_the_key_counts():
    fields = {"graph": "g", "tensorrt": "10.3", "cuda": "12.6", "gpu": "x", "compute_capability": "8.7", "profile": "p",
              "precision": "fp16"}  # fmt: skip
    key = EngineKey(**fields)
    for name in fields:
        other = EngineKey(**{**fields, name: "other"})
        assert other.digest != key.digest
        assert differing(vars(key), vars(other)) == [f"{name}: built for {fields[name]!r}, here 'other'"]


def test_both_schemas_of_the_inspector_are_read():
    for report in (HALF_10, HALF_11):
        assert count_types(report) == {"fp16": 1, "fp32": 1} and borders(report) == ["image", "logits"]
        check_precision_of(report, "fp16")
        with pytest.raises(VerificationError, match="no int8 layer"):
            check_precision_of(report, "int8")
    names = {"Half": "fp16", "BFloat16": "bf16", "Int8": "int8", "FP8": "fp8", "Float": "fp32", "Int64": "other"}
    for text, wanted in names.items():
        assert count_types(json.dumps({"Layers": [{"Outputs": [{"DataType": text}]}]})) == {wanted: 1}
    with pytest.raises(VerificationError, match="without types"):
        count_types(json.dumps({"Layers": ["conv", "softmax"]}))
    with pytest.raises(VerificationError, match="cannot be read"):
        count_types("no json")


def test_without_a_driver_or_tensorrt_the_reason_is_said(monkeypatch):
    class Refuses:
        def __getattr__(self, name):
            return lambda *a: 100

    with pytest.raises(BackendError, match="refused cuInit with status 100"):
        Driver(library=Refuses())
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    usable = native.probe()
    assert not usable.usable and "tensorrt" in usable.reason and "[tensorrt]" in usable.install
    assert zeros((2,), "bf16").dtype == np.uint16
