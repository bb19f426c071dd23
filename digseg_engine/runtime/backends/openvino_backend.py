"""OpenVINO: a bundle's graphs on the CPU, in float32 or in bf16 where it has units for that, and on Intel's GPUs and NPUs.

Every graph is the stored one. The one made for a CPU (`*.fp32.onnx`) scans the prompts, and OpenVINO's importer refuses that
`Scan`: it counts the values that the loop's body takes from outside as states of the loop. Shapes stay free, so that another
size or number of prompts compiles nothing; compiled graphs are kept in the user's own cache. GPU and NPU were not run by us yet.
"""

from __future__ import annotations

import hashlib
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from digseg_engine.bundle import weights_of
from digseg_engine.contract import GraphSpec
from digseg_engine.errors import BackendError
from digseg_engine.extras import install_line
from digseg_engine.runtime.backends import Array, Usable, in_one_line
from digseg_engine.runtime.backends.graphs import GraphBackend
from digseg_engine.runtime.backends.ort_backend import PROBE
from digseg_engine.runtime.machine import cores
from digseg_engine.runtime.private_cache import private_folder

if TYPE_CHECKING:
    from digseg_engine.bundle import Bundle
    from digseg_engine.runtime.source import Source

_log = logging.getLogger("digseg_engine")
_importing = Lock()
FOLDER = "openvino"


@dataclass(frozen=True)
class Variant:
    """device: as OpenVINO calls it; hint: the type it computes in; precision: as the golden sample is judged; needs: what
    OpenVINO must say that the device can; words: for people."""

    device: str
    hint: str
    precision: str
    needs: str
    words: str


VARIANTS = {
    "openvino": Variant("CPU", "f32", "fp32", "FP32", "float32"),
    "openvino-bf16": Variant("CPU", "bf16", "bf16", "BF16", "bf16"),
    "openvino-gpu": Variant("GPU", "f16", "fp16", "FP16", "fp16"),
    "openvino-npu": Variant("NPU", "f16", "fp16", "FP16", "fp16"),
}


def load() -> Any:
    """The library, imported without its reports to the maker: it would send one at every import. Raises ImportError."""
    with _importing, _absent("openvino_telemetry"):  # OpenVINO then takes its own stand-in, which sends nothing
        return import_module("openvino")


@cache
def core() -> Any:
    """OpenVINO's core, one for the process and never given back.

    Its CPU plug-in moves the thread's stack for signals into memory of its own, and the end of a core takes that memory away,
    whatever thread and order it comes in: the next Ctrl-C would then be a segmentation fault. Raises ImportError.
    """
    return load().Core()


@contextmanager
def _absent(module: str) -> Iterator[None]:
    """A module cannot be imported inside, unless it was before."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]


def probe(name: str = "openvino") -> Usable:
    """Compile and run one operation on the device, in the precision."""
    try:
        runtime = load()
    except ImportError as error:
        return Usable(name, False, "", f"not installed ({error})", install_line("openvino"))
    except Exception as error:
        return Usable(name, False, "", f"cannot be imported: {in_one_line(error)}", install_line("openvino"))
    variant = VARIANTS[name]
    try:
        lacks = lacking(core(), variant)
        if lacks:
            return Usable(name, False, "", *lacks)
        request = compiled(core(), PROBE, variant.device, settings(variant, 1)).create_infer_request()
        request.infer([np.zeros(1, np.float32)])
    except Exception as error:
        return Usable(name, False, "", f"one operation failed: {in_one_line(error)}", "another --backend")
    return Usable(name, True, f"openvino {release(runtime)}, {variant.device}, {variant.words}")


def lacking(core: Any, variant: Variant, device: str = "") -> tuple[str, str] | None:
    """What a device lacks for a variant and what would help; None where it can run."""
    wanted, found = device or variant.device, list(core.available_devices)
    if not any(one == wanted or one.startswith(f"{wanted}.") for one in found):
        return (
            f"OpenVINO finds no {wanted} here (it finds {', '.join(found) or 'nothing'})",
            f"an Intel {wanted} and its driver",
        )
    able = core.get_property(wanted, "OPTIMIZATION_CAPABILITIES")
    if variant.needs not in able:
        return f"this {wanted} computes no {variant.words} (OpenVINO says {', '.join(able)})", "another --backend"
    return None


def release(runtime: Any) -> str:
    """2026.4.1 of "2026.4.1-22060-6ad5c2b86ba-releases/2026/4"."""
    return str(runtime.__version__).partition("-")[0]


def settings(variant: Variant, threads: int) -> dict[str, Any]:
    """Properties of a compiled graph: one question after the other, on so many threads of a CPU, which are bound to no core:
    engines side by side would share one."""
    common = {"INFERENCE_PRECISION_HINT": variant.hint, "PERFORMANCE_HINT": "LATENCY"}
    if variant.device != "CPU":
        return common
    return {**common, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}


def compiled(
    core: Any, model: str | bytes, device: str, properties: dict[str, Any], file: str = "a one-node graph"
) -> Any:
    """A graph, a path or its bytes, ready to run. Raises BackendError naming the operator that OpenVINO does not take, and
    for a precision other than the one asked for."""
    try:
        read = core.read_model(model) if isinstance(model, str) else core.read_model(model, b"")
        made = core.compile_model(wide_borders(read, device), device, properties)
    except Exception as error:
        raise BackendError(f"OpenVINO does not take {file}: {refusal(error)}; choose another --backend") from error
    used = made.get_property("INFERENCE_PRECISION_HINT").to_string()
    if used != properties["INFERENCE_PRECISION_HINT"]:
        raise BackendError(f"OpenVINO runs {file} in {used}, and {properties['INFERENCE_PRECISION_HINT']} was asked for; choose "
                           "another --backend")  # fmt: skip
    return made


def wide_borders(model: Any, device: str) -> Any:
    """A graph that takes and gives float32 where it was stored with bf16, which NumPy has not, and on a CPU where it was stored
    with fp16: it turns that into what it computes in by a loop of scalars."""
    runtime, ports = load(), import_module("openvino.preprocess").PrePostProcessor(model)
    narrow = (runtime.Type.bf16, runtime.Type.f16) if device == "CPU" else (runtime.Type.bf16,)
    for of, found in ((ports.input, model.inputs), (ports.output, model.outputs)):
        for i, port in enumerate(found):
            if port.element_type in narrow:
                of(i).tensor().set_element_type(runtime.Type.f32)
    return ports.build()


# Lines of OpenVINO's errors that say where in its own source, or that something failed, and not what.
_NOISE = re.compile(
    r"Exception from |Check '|FrontEnd API failed|Model wasn't fully|Summary:|-- Conversion is failed|While val"
)
_OPERATOR = re.compile(r"^-- (?P<operator>\w+?)(-\d+)? with a message:")


def refusal(error: Exception) -> str:
    """OpenVINO's many lines in one: the operator, where it names one, and the reason."""
    operators, reasons = [], []
    for line in filter(None, map(str.strip, str(error).splitlines())):
        if found := _OPERATOR.match(line):
            operators.append(found["operator"])
        elif not _NOISE.match(line):
            reasons.append(line)
    why = reasons[0] if reasons else in_one_line(error)
    return f"operator {', '.join(dict.fromkeys(operators))} ({why})" if operators else why


class Requests:
    """A compiled graph, and the requests that run it: one for each thread that is inside, kept for the next."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self._inputs = [(port, port.names, port.element_type.to_dtype()) for port in graph.inputs]
        self._free: list[Any] = []

    def __call__(self, feeds: dict[str, Array]) -> list[Array]:
        try:
            request = self._free.pop()
        except IndexError:
            request = self.graph.create_infer_request()
        try:
            held = []  # arrays that are lent, until the answer is there
            for port, names, dtype in self._inputs:
                (array,) = (array for name, array in feeds.items() if name in names)
                held.append(np.ascontiguousarray(array, dtype))
                request.set_tensor(port, tensor(held[-1]))  # always another: the last one's memory may be gone
            request.infer()
            return [np.array(made.data) for made in request.output_tensors]  # its own memory is written again
        finally:
            self._free.append(request)


def tensor(array: Array) -> Any:
    """OpenVINO's own: of the array's memory where it can be lent, else a copy."""
    runtime = load()
    if array.dtype == np.bool_:  # it would take an array of them for one of bytes
        made = runtime.Tensor(runtime.Type.boolean, array.shape)
        made.data[...] = array
        return made
    return runtime.Tensor(array, shared_memory=array.flags.writeable)


class OpenvinoBackend(GraphBackend):
    """The stored graphs of a bundle, compiled by OpenVINO for one device and one precision.

    Raises BackendError without the package, the device or the precision, and for a graph that OpenVINO does not take.
    """

    def __init__(self, source: Source, name: str = "openvino") -> None:
        try:
            runtime = load()
        except ImportError as error:
            raise BackendError(
                f"backend {name} cannot run here: {error}; install it with {install_line('openvino')}"
            ) from error
        self.name, variant = name, VARIANTS[name]
        self.precision = variant.precision
        bundle = source.need_bundle(name)
        self._core = core()
        self._device = device(source, name)
        if lacks := lacking(self._core, variant, self._device):
            raise BackendError(f"backend {name} cannot run here: {lacks[0]}; it needs {lacks[1]}")
        self._full_name = str(self._core.get_property(self._device, "FULL_DEVICE_NAME")).strip()
        self._settings = {**settings(variant, source.threads or cores()), **self._cache(bundle, release(runtime))}
        self.open(bundle, self._compiled)
        halves = self._image.graph.output(0).element_type == runtime.Type.f16
        self._text_dtype = np.float16 if halves else np.float32
        stored = bundle.manifest["precision"]["name"]
        self.detail = f"openvino {release(runtime)}, {self._full_name}, computes in {variant.words}, {stored} weights"

    def _compiled(self, bundle: Bundle, spec: GraphSpec) -> Requests:
        """A graph that asks for nothing but its own weights, from files that are after it what they were when hashed."""
        bundle.graph(spec.file)
        made = compiled(self._core, str(bundle.file(spec.file)), self._device, self._settings, spec.file)
        for name in (spec.file, weights_of(spec.file)):
            if name in bundle.manifest["files"]:
                bundle.unchanged(name)
        return Requests(made)

    def _cache(self, bundle: Bundle, version: str) -> dict[str, Any]:
        """Where compiled graphs are kept: nowhere when this user has no folder of their own, which the log says."""
        about = f"{bundle.digest} {self.name} {self._device} {self._full_name} {version}"
        try:
            folder = private_folder(FOLDER, hashlib.sha256(about.encode()).hexdigest()[:20])
        except BackendError as error:
            _log.warning("compiled graphs are not kept: %s", error)
            return {}
        return {"CACHE_DIR": str(folder)}

    def named(self, graph: Any, feeds: dict[str, Array], wanted: tuple[str, ...]) -> dict[str, Array]:
        made = zip(graph.graph.outputs, graph(feeds))  # a tensor may have several names, of which any_name is any
        return {name: array for output, array in made for name in wanted if name in output.names}

    def answers(self, graph: Any, feeds: dict[str, Array]) -> list[Array]:
        results: list[Array] = graph(feeds)
        return results


def device(source: Source, name: str) -> str:
    """The device as OpenVINO calls it: `GPU.1` for "gpu:1". Raises BackendError when another kind was asked for."""
    own = VARIANTS[name].device
    if source.device is None:
        return own
    kind, _, number = source.device.partition(":")
    if kind.upper() != own:
        raise BackendError(f"{name} runs on the {own}, and the device {source.device} was asked for; leave the device out, or "
                           "choose another --backend")  # fmt: skip
    return f"{own}.{number}" if number else own
