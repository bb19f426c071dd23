"""TensorRT engines of a bundle, 10.3 to 11.x, with nothing but TensorRT's Python bindings and the CUDA driver.

Not run by us yet. The names used here exist in the published bindings of 10.3, 10.16 and 11.1 (a test holds this). Results:
None or False from TensorRT is turned into BackendError with the last lines of its log.
"""

from __future__ import annotations

import weakref
from collections import deque
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from digseg_engine.bundle import Bundle
from digseg_engine.contract import GRAPHS, SEGMENTER, TEXT_ENCODER, GraphSpec
from digseg_engine.errors import BackendError
from digseg_engine.extras import install_line
from digseg_engine.runtime.backends import Array, Usable, failing_as, in_one_line
from digseg_engine.runtime.backends.tensorrt_library import TENSORRT, load
from digseg_engine.runtime.cuda_driver import Driver, zeros
from digseg_engine.runtime.engine_store import EngineKey, engine_path, graph_hash, load_plan
from digseg_engine.runtime.profile import Profile, make_profile

_loggers: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def logger_of(trt: Any, keep: int = 20) -> Any:
    """The logger of this process for a library, emptied: it keeps the last errors and all warnings. There is one, because
    the library goes on with the first it was given for as long as anything made with that is alive."""

    class Keeper(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: deque[str] = deque(maxlen=keep)
            self.warnings: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity < trt.ILogger.Severity.WARNING:
                self.errors.append(message)
            elif severity == trt.ILogger.Severity.WARNING:
                self.warnings.append(message)

    logger = _loggers.get(trt)
    if logger is None:
        logger = _loggers[trt] = Keeper()
    logger.errors.clear()
    logger.warnings.clear()
    return logger


def failure(what: str, logger: Any, next_step: str) -> BackendError:
    """A call of the library that returned None or False, as one line with the end of its log."""
    said = " | ".join(list(logger.errors or logger.warnings)[-3:]) or "the library gave no reason"
    return BackendError(" ".join(f"{what}: {said}; {next_step}".split()))


def bundle_profile(bundle: Bundle) -> Profile:
    """The profile of the manifest; for a dynamic bundle 1 picture of the model's own size and up to 16 prompts."""
    model = bundle.manifest["model"]
    found = Profile.from_json(bundle.manifest["shapes"])
    return found or make_profile({}, {}, {}, int(model["image_size"]), int(model["stride"]))


def model_sizes(bundle: Bundle) -> dict[str, int]:
    """The axes of the contract that the model itself fixes."""
    model = bundle.manifest["model"]
    student = model["student"]
    return {"S": model["scales"], "heads": student["heads"], "d": student["width"] // student["heads"],
            "Co": student["head_width"]}  # fmt: skip


def engine_key(bundle: Bundle, spec: GraphSpec, version: str, driver: Driver) -> EngineKey:
    """The key of this graph's engine on this machine."""
    device = driver.describe()
    profile = repr(sorted((axis, r["min"], r["opt"], r["max"]) for axis, r in bundle_profile(bundle).to_json().items()))
    precision = str(bundle.manifest["precision"]["name"])
    return EngineKey(
        graph_hash(bundle, spec), version, device.cuda, device.name, device.compute_capability, profile, precision
    )


def probe() -> Usable:
    """TensorRT of a usable version and a GPU that answers."""
    try:
        trt = load(TENSORRT)
        device = Driver().describe()
    except Exception as error:
        return Usable("tensorrt", False, "", in_one_line(error), install_line("tensorrt"))
    return Usable("tensorrt", True, f"tensorrt {trt.__version__} on {device.name}, not run by us yet")


class _Graph:
    """One deserialised engine with its context, buffers and stream; used under a lock."""

    def __init__(
        self, trt: Any, runtime: Any, logger: Any, driver: Driver, path: Path, plan: bytes, spec: GraphSpec
    ) -> None:
        self._logger, self._driver, self._spec = logger, driver, spec
        self._engine = runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise failure(f"{path} could not be deserialised", logger, "build it again on this machine")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise failure(f"{path} got no execution context", logger, "free GPU memory, or use a smaller profile")
        names = {self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)}
        if wanted := {t.name for t in (*spec.inputs, *spec.outputs)} - names:
            raise BackendError(f"{path} lacks the tensors {', '.join(sorted(wanted))}; build it again")
        self._stream, self._buffers = driver.stream(), {}  # type: int, dict[str, tuple[int, int]]
        self._lock = Lock()

        weakref.finalize(self, _give_back, driver, self._stream, self._buffers)

    def _buffer(self, name: str, size: int) -> int:
        pointer, held = self._buffers.get(name, (0, 0))
        if held < size:
            if pointer:
                del self._buffers[name]
                self._driver.free(pointer)
            pointer = self._driver.allocate(size)
            self._buffers[name] = (pointer, size)
        return pointer

    def run(self, feeds: dict[str, Array], kinds: dict[str, str]) -> list[Array]:
        """feeds by name -> outputs in contract order; `kinds` is each output's host type."""
        with self._lock:
            self._driver.make_current()
            alive = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
            for name, array in alive.items():
                if not self._context.set_input_shape(name, tuple(array.shape)):
                    raise failure(
                        f"{self._spec.file} refuses {name} of shape {array.shape}", self._logger, "see the profile"
                    )
                pointer = self._buffer(name, array.nbytes)
                self._driver.upload(pointer, array, self._stream)
                self._context.set_tensor_address(name, pointer)
            if missing := self._context.infer_shapes():
                raise failure(f"{self._spec.file} still lacks {', '.join(missing)}", self._logger, "build it again")
            outputs = []
            for tensor in self._spec.outputs:
                host = zeros(tuple(self._context.get_tensor_shape(tensor.name)), kinds[tensor.name])
                self._context.set_tensor_address(tensor.name, self._buffer(tensor.name, host.nbytes))
                outputs.append(host)
            if not self._context.execute_async_v3(self._stream):
                raise failure(f"{self._spec.file} failed to run", self._logger, "try --backend onnxruntime")
            for tensor, host in zip(self._spec.outputs, outputs):
                self._driver.download(host, self._buffers[tensor.name][0], self._stream)
            self._driver.wait(self._stream)
            return outputs


def _give_back(driver: Driver, stream: int, buffers: dict[str, tuple[int, int]]) -> None:
    """Free what a graph held on the GPU; a driver that is gone has freed it already."""
    with suppress(BackendError):
        driver.make_current()
        driver.wait(stream)
        for pointer, _ in buffers.values():
            driver.free(pointer)
        driver.end_stream(stream)


class TensorrtBackend:
    """Both graphs of a bundle as engines built on this machine, on GPU number `index`. Thread-safe: one lock per graph."""

    name = "tensorrt"
    precision = "fp32"  # that of the bundle, whose golden sample already allows for it
    fixed_shapes = False

    def __init__(self, bundle: Bundle, trt: Any = None, driver: Driver | None = None, index: int = 0) -> None:
        trt = trt or load(TENSORRT)
        driver = driver or Driver(index)
        self._logger = logger_of(trt)
        self._runtime = trt.Runtime(self._logger)
        self.profile = bundle_profile(bundle)
        precision = str(bundle.manifest["precision"]["name"])
        half = precision if precision in ("fp16", "bf16") else "float32"
        self._kinds = {
            t.name: half if t.dtype == "graph" else t.dtype for s in GRAPHS.values() for t in (*s.inputs, *s.outputs)
        }
        self._bits = {"fp16": np.float16, "bf16": np.uint16}.get(half, np.float32)
        self._text, self._segmenter = (self._load(trt, driver, bundle, spec) for spec in (TEXT_ENCODER, SEGMENTER))
        self.detail = f"tensorrt {trt.__version__}, {driver.describe().name}, {precision}"

    def _load(self, trt: Any, driver: Driver, bundle: Bundle, spec: GraphSpec) -> _Graph:
        key = engine_key(bundle, spec, trt.__version__, driver)
        path = engine_path(key, spec)
        with failing_as("tensorrt", f"while opening {path.name}"):
            return _Graph(trt, self._runtime, self._logger, driver, path, load_plan(path, key), spec)

    def encode_text(self, token_ids: NDArray[np.int64], token_mask: NDArray[np.bool_]) -> tuple[Array, Array]:
        """token_ids [K, L], token_mask [K, L] -> text_keys, text_values; bf16 travels as its 16 bits."""
        self.profile.check({"L": token_ids.shape[1]})
        with failing_as("tensorrt", f"on {len(token_ids)} prompts"):
            keys, values = self._text.run({"token_ids": token_ids, "token_mask": token_mask}, self._kinds)
        return keys, values

    def segment(self, image: Array, keys: Array, values: Array, token_mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        """image [B, 3, H, W] and folded text of K prompts -> logits [B, K, h', w']; refused outside the profile."""
        b, _, h, w = image.shape
        self.profile.check({"B": b, "K": keys.shape[0], "L": token_mask.shape[1], "H": h, "W": w})
        feeds = {"image": image, "text_keys": keys.astype(self._bits, copy=False),
                 "text_values": values.astype(self._bits, copy=False), "token_mask": token_mask}  # fmt: skip
        with failing_as("tensorrt", f"on a picture of shape {list(image.shape)} with {len(keys)} prompts"):
            (logits,) = self._segmenter.run(feeds, self._kinds)
        return logits
