"""ONNX Runtime's plug-in for TensorRT-RTX: what is asked of ONNX Runtime, told by a stand-in; and the real package, where it
is installed, up to what a machine without a GPU's driver allows."""

import types

import pytest

from digseg_engine.bundle import open_bundle
from digseg_engine.contract import MASK_DECODER
from digseg_engine.errors import BackendError
from digseg_engine.runtime.backends import kinds, ort_plugin
from digseg_engine.runtime.backends.ort_backend import PLACES, preload
from digseg_engine.runtime.source import open_source

PACKAGE = types.SimpleNamespace(get_library_path=lambda: "libplugin.so")


class Runtime:
    """As much of ONNX Runtime as a plug-in meets."""

    __version__ = "1.24.0"

    def __init__(self, offered=(ort_plugin.PROVIDER, "CPUExecutionProvider"), runs_on=ort_plugin.PROVIDER, refuses=""):
        self.log, self.refuses = [], refuses
        self._devices = [types.SimpleNamespace(ep_name=name) for name in offered]
        session = types.SimpleNamespace(get_providers=lambda: [runs_on, "CPUExecutionProvider"])
        self.InferenceSession = lambda model, options: self.log.append(("session", model)) or session

    def register_execution_provider_library(self, name, path):
        self.log.append(("register", name, path))
        if self.refuses:
            raise RuntimeError(self.refuses)

    def get_ep_devices(self):
        return self._devices

    def options(self):
        return types.SimpleNamespace(
            add_session_config_entry=lambda *a: self.log.append(("entry", *a)),
            add_provider_for_devices=lambda *a: self.log.append(("devices", *a)),
        )


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch):
    monkeypatch.setattr(ort_plugin, "_registered", set())


def test_the_library_is_registered_once_and_its_own_device_is_taken(tmp_path):
    runtime = Runtime()
    first = ort_plugin.devices(runtime, PACKAGE)
    assert ort_plugin.devices(runtime, PACKAGE) == first == [runtime.get_ep_devices()[0]]
    assert runtime.log == [("register", ort_plugin.PROVIDER, "libplugin.so")]
    runtime.log.clear()
    ort_plugin.make_session(runtime, tmp_path / "x.onnx", runtime.options(), first[0], {"a": "b"})
    assert runtime.log == [
        ("entry", PLACES, "1"),
        ("devices", first, {"a": "b"}),
        ("session", str(tmp_path / "x.onnx")),
    ]


def test_what_cannot_run_is_one_line():
    refused = Runtime(
        refuses="[ONNXRuntimeError] : 1 : FAIL : Failed to load library x.so with error: libcuda.so.1: no such file"
    )
    with pytest.raises(
        BackendError, match=r"cannot register NvTensorRTRTX\w+: libcuda\.so\.1: no such file; it needs an NVIDIA"
    ):
        ort_plugin.devices(refused, PACKAGE)
    with pytest.raises(BackendError, match="offers no device"):
        ort_plugin.devices(Runtime(offered=("CPUExecutionProvider",)), PACKAGE)
    with pytest.raises(BackendError, match=r"onnxruntime 1\.22\.0 takes no plug-ins; expected 1\.24 or newer"):
        ort_plugin.devices(types.SimpleNamespace(__version__="1.22.0"), PACKAGE)
    elsewhere = Runtime(runs_on="CPUExecutionProvider")
    with pytest.raises(BackendError, match="runs on CPUExecutionProvider, expected NvTensorRTRTXExecutionProvider"):
        ort_plugin.make_session(elsewhere, b"", elsewhere.options(), None, {})


def test_its_options_are_the_profile_and_the_closed_cache(nano_models, own_cache):
    channels = open_bundle(nano_models.fp16).manifest["model"]["encoding"]
    found = ort_plugin.settings(open_bundle(nano_models.fp16), MASK_DECODER)
    assert found["nv_profile_opt_shapes"].startswith(f"encoding:1x{channels}x8x8,text_keys:5x2x2x8x16")
    assert found["nv_profile_max_shapes"].endswith("token_mask:16x77")
    folder = own_cache / "onnxruntime-tensorrt-rtx" / open_bundle(nano_models.fp16).digest
    assert found["nv_runtime_cache_path"] == str(folder) and folder.stat().st_mode & 0o777 == 0o700


def test_the_real_package_says_what_this_machine_lacks(nano_models):
    pytest.importorskip("onnxruntime_ep_nv_tensorrt_rtx", reason="extra onnxruntime-tensorrt-rtx: a 146 MB package")
    usable = ort_plugin.probe()
    if usable.usable:
        pytest.skip("there is a GPU for it")
    assert "\n" not in usable.reason and "it needs an NVIDIA RTX GPU and its driver" in usable.reason
    with pytest.raises(BackendError, match="cannot register"):
        kinds()[ort_plugin.NAME].create(open_source(nano_models.fp16))


@pytest.mark.parametrize("built", [True, False])
def test_cuda_libraries_are_loaded_only_for_a_release_built_with_cuda(built):
    """1.22 of the CPU prints a warning to standard output otherwise, into the middle of `--json`."""
    calls, providers = [], ["CUDAExecutionProvider"] * built + ["CPUExecutionProvider"]
    runtime = types.SimpleNamespace(get_available_providers=lambda: providers, preload_dlls=lambda: calls.append(1))
    preload(runtime, "CUDAExecutionProvider")
    assert len(calls) == built
