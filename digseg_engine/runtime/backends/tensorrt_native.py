"""Engines of a bundle run by TensorRT 10.3 to 11.x, with nothing but its Python bindings and the CUDA driver. What is here
serves TensorRT-RTX too (`tensorrt_rtx.py`).

Not run by us yet. The names used here exist in the published bindings of 10.3, 10.16 and 11.1 (a test holds this). Results:
None or False from TensorRT is turned into BackendError with the last lines of its log.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from digseg_engine.bundle import Bundle
from digseg_engine.contract import ENCODING, IMAGE_ENCODER, LABELS, MASK_DECODER, PRESENCE, TEXT_ENCODER, GraphSpec
from digseg_engine.errors import BackendError
from digseg_engine.extras import install_line
from digseg_engine.precisions import PLAIN, spec_of
from digseg_engine.runtime.backends import Array, Usable, failing_as, in_one_line
from digseg_engine.runtime.backends.placed import Placed
from digseg_engine.runtime.backends.tensorrt_library import TENSORRT, load
from digseg_engine.runtime.cuda_driver import Driver, zeros
from digseg_engine.runtime.engine_store import EngineKey, engine_path, graph_hash, load_plan
from digseg_engine.runtime.profile import Profile, make_profile

Memory = tuple[int, int]  # address on the GPU, bytes
SPARE = 4  # encodings whose memory is kept for others
Place = Callable[[str, tuple[int, ...]], int]  # name and shape of an output -> its address

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
    """The axes of the contract that the model itself fixes, and its stride s."""
    model = bundle.manifest["model"]
    student = model["student"]
    return {"S": model["scales"], "heads": student["heads"], "d": student["width"] // student["heads"],
            "Co": student["head_width"], "M": model["encoding"], "s": model["stride"]}  # fmt: skip


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


class Queue:
    """The stream of a backend, on which all its graphs run in order, and the memory of its encodings: what one gives back serves
    the next of its size, because whatever was queued with it is done before."""

    def __init__(self, driver: Driver) -> None:
        self.driver, self.stream = driver, driver.stream()
        self._spare: list[Memory] = []
        weakref.finalize(self, _end_queue, driver, self.stream, self._spare)

    def placed(self, shape: tuple[int, ...], itemsize: int) -> Placed:
        """Memory for a tensor, given back with the last that holds it."""
        size = itemsize * int(np.prod(shape))
        memory = self._kept(size)
        if memory is None:
            self.driver.make_current()
            memory = self.driver.allocate(size), size
        owner = Owner()
        weakref.finalize(owner, self.take_back, memory)
        return Placed(owner, memory[0], shape, itemsize)

    def _kept(self, size: int) -> Memory | None:
        for memory in [each for each in self._spare if each[1] == size]:
            with suppress(ValueError):  # an encoding that was collected just now has pushed it out
                self._spare.remove(memory)
                return memory
        return None

    def take_back(self, memory: Memory) -> None:
        """Keep memory for another encoding; of more than a few the oldest goes."""
        self._spare.append(memory)
        if len(self._spare) > SPARE:
            _free(self.driver, self.stream, [self._spare.pop(0)])


class Owner:
    """Whoever holds it holds the memory of an encoding."""


def _free(driver: Driver, stream: int, memories: list[Memory]) -> None:
    """Free memory after all that was queued with it; a driver that is gone has freed it already."""
    with suppress(BackendError):
        driver.make_current()
        driver.wait(stream)
        for pointer, _ in memories:
            driver.free(pointer)


def _end_queue(driver: Driver, stream: int, spare: list[Memory]) -> None:
    _free(driver, stream, spare)
    with suppress(BackendError):
        driver.end_stream(stream)


class Graph:
    """One deserialised engine with its context and buffers, on the stream of its backend; used under a lock. context: makes
    an execution context."""

    def __init__(
        self, runtime: Any, logger: Any, queue: Queue, path: Path, plan: bytes, spec: GraphSpec,
        context: Callable[[Any], Any] = lambda engine: engine.create_execution_context(),
    ) -> None:  # fmt: skip
        self._logger, self._queue, self._driver, self.spec = logger, queue, queue.driver, spec
        self._engine = runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise failure(f"{path} could not be deserialised", logger, "build it again")
        self._context = context(self._engine)
        if self._context is None:
            raise failure(f"{path} got no execution context", logger, "free GPU memory, or use a smaller profile")
        names = {self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)}
        if wanted := {t.name for t in (*spec.inputs, *spec.outputs)} - names:
            raise BackendError(f"{path} lacks the tensors {', '.join(sorted(wanted))}; build it again")
        self._buffers: dict[str, Memory] = {}
        self._alive: list[Array] = []
        self._lock = Lock()
        weakref.finalize(self, _give_back, queue, self._buffers)

    def _buffer(self, name: str, size: int) -> int:
        pointer, allocated = self._buffers.get(name, (0, 0))
        if allocated < size:
            if pointer:
                del self._buffers[name]
                self._driver.free(pointer)
            pointer = self._driver.allocate(size)
            self._buffers[name] = (pointer, size)
        return pointer

    def run(
        self, feeds: dict[str, Array], kinds: dict[str, str], there: dict[str, Placed] | None = None
    ) -> list[Array]:
        """feeds by name, and those that are on the GPU already -> outputs in contract order; `kinds` is each one's host type."""
        outputs: list[Array] = []

        def place(name: str, shape: tuple[int, ...]) -> int:
            outputs.append(zeros(shape, kinds[name]))
            return self._buffer(name, outputs[-1].nbytes)

        with self._lock:
            self._enqueue(feeds, there or {}, place)
            for tensor, host in zip(self.spec.outputs, outputs):
                self._driver.download(host, self._buffers[tensor.name][0], self._queue.stream)
            self._driver.wait(self._queue.stream)
            return outputs

    def enqueue(self, feeds: dict[str, Array], there: dict[str, Placed], place: Place) -> None:
        """As `run`, with some inputs on the GPU already and outputs where `place` says; nothing waits for the host, so all
        of it is in the order of the backend's stream."""
        with self._lock:
            self._enqueue(feeds, there, place)

    def _enqueue(self, feeds: dict[str, Array], there: dict[str, Placed], place: Place) -> None:
        self._driver.make_current()
        held = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        for name, array in held.items():
            pointer = self._buffer(name, array.nbytes)
            self._driver.upload(pointer, array, self._queue.stream)
            there = {**there, name: Placed(self, pointer, tuple(array.shape), array.itemsize)}
        for name, placed in there.items():
            if not self._context.set_input_shape(name, placed.shape):
                raise failure(
                    f"{self.spec.file} refuses {name} of shape {placed.shape}", self._logger, "see the profile"
                )
            self._context.set_tensor_address(name, placed.pointer)
        if missing := self._context.infer_shapes():
            raise failure(f"{self.spec.file} still lacks {', '.join(missing)}", self._logger, "build it again")
        for tensor in self.spec.outputs:
            shape = tuple(self._context.get_tensor_shape(tensor.name))
            self._context.set_tensor_address(tensor.name, place(tensor.name, shape))
        if not self._context.execute_async_v3(self._queue.stream):
            raise failure(f"{self.spec.file} failed to run", self._logger, "try --backend onnxruntime")
        self._alive = list(held.values())  # until the next call: its copies may still be on their way


def _give_back(queue: Queue, buffers: dict[str, Memory]) -> None:
    _free(queue.driver, queue.stream, list(buffers.values()))


class TensorrtBackend:
    """The graphs of a bundle as engines built on this machine, on GPU number `index`, all on one stream. Thread-safe: one lock
    per graph. Encodings stay on the GPU."""

    name = "tensorrt"
    library = TENSORRT
    precision = PLAIN.name  # that of the bundle, whose golden sample already allows for it

    def __init__(self, bundle: Bundle, trt: Any = None, driver: Driver | None = None, index: int = 0) -> None:
        self._trt = trt or load(self.library)
        self._driver, self.index = driver or Driver(index), index
        self._queue = Queue(self._driver)
        self._logger = logger_of(self._trt)
        self._runtime = self._trt.Runtime(self._logger)
        self.profile = bundle_profile(bundle)
        precision = str(bundle.manifest["precision"]["name"])
        spec = spec_of(precision)
        half = precision if spec.reduced else spec.host
        self._kinds = {
            t.name: half if t.dtype == "graph" else t.dtype
            for s in bundle.graphs.values()
            for t in (*s.inputs, *s.outputs)
        }
        self._bits = spec.host
        self._graphs = {spec.file: self._open(bundle, spec) for spec in bundle.graphs.values()}
        self.detail = f"{self.name} {self._trt.__version__}, {self._driver.describe().name}, {precision}"

    def _open(self, bundle: Bundle, spec: GraphSpec) -> Graph:
        path, plan = self._plan(bundle, spec)
        with failing_as(self.name, f"while opening {path.name}"):
            return Graph(
                self._runtime, self._logger, self._queue, path, plan, spec, lambda engine: self._context(engine, spec)
            )

    def _plan(self, bundle: Bundle, spec: GraphSpec) -> tuple[Path, bytes]:
        """A graph's plan: where it lies, and its bytes, whose hash was checked."""
        key = engine_key(bundle, spec, self._trt.__version__, self._driver)
        path = engine_path(key, spec)
        return path, load_plan(path, key)

    def _context(self, engine: Any, spec: GraphSpec) -> Any:
        return engine.create_execution_context()

    def ran(self, spec: GraphSpec, *shape: int) -> None:
        """Told after a graph has run at a shape."""

    def encode_text(self, token_ids: NDArray[np.int64], token_mask: NDArray[np.bool_]) -> tuple[Array, Array]:
        """token_ids [K, L], token_mask [K, L] -> text_keys, text_values; bf16 travels as its 16 bits."""
        self.profile.check({"L": token_ids.shape[1]})
        with failing_as(self.name, f"on {len(token_ids)} prompts"):
            feeds = {"token_ids": token_ids, "token_mask": token_mask}
            keys, values = self._graphs[TEXT_ENCODER.file].run(feeds, self._kinds)
            self.ran(TEXT_ENCODER, *token_ids.shape)
        return keys, values

    def encode_image(self, image: Any) -> Placed:
        """image [B, 3, H, W], an array or a torch tensor on this GPU -> its encoding, which stays there; nothing waits for
        the host. Refused outside the profile."""
        b, _, h, w = image.shape
        self.profile.check({"B": b, "H": h, "W": w})
        tensor = None if isinstance(image, np.ndarray) else self._on_this_gpu(image).contiguous()
        made: list[Placed] = []

        def place(name: str, shape: tuple[int, ...]) -> int:
            made.append(self._queue.placed(shape, np.dtype(self._bits).itemsize))
            return made[-1].pointer

        with failing_as(self.name, f"on a picture of shape {list(image.shape)}"):
            graph = self._graphs[IMAGE_ENCODER.file]
            if tensor is None:
                graph.enqueue({"image": image}, {}, place)
            else:
                there = Placed(tensor, tensor.data_ptr(), tuple(tensor.shape), 4)
                self._in_turn([tensor], lambda: graph.enqueue({}, {"image": there}, place))
            self.ran(IMAGE_ENCODER, *image.shape)
        return made[0]

    def presence(
        self, encoding: Placed, keys: Array, values: Array, token_mask: NDArray[np.bool_]
    ) -> NDArray[np.float32] | None:  # fmt: skip
        """Presence logits [B, K] of K prompts about encoded pictures."""
        return self._ask(PRESENCE, encoding, keys, values, token_mask) if PRESENCE.file in self._graphs else None

    def decode(
        self, encoding: Placed, keys: Array, values: Array, token_mask: NDArray[np.bool_]
    ) -> NDArray[np.float32]:  # fmt: skip
        """Logits [B, K, h', w'] of K prompts about encoded pictures; refused outside the profile."""
        return self._ask(MASK_DECODER, encoding, keys, values, token_mask)

    def _ask(
        self, spec: GraphSpec, encoding: Placed, keys: Array, values: Array, token_mask: NDArray[np.bool_]
    ) -> NDArray[np.float32]:  # fmt: skip
        feeds = self._asked(encoding, keys, values, token_mask)
        with failing_as(self.name, f"on {len(encoding)} pictures with {len(keys)} prompts"):
            (found,) = self._graphs[spec.file].run(feeds, self._kinds, {ENCODING.name: encoding})
            self.ran(spec, *encoding.shape, *token_mask.shape)
        return found

    def labels(self, encoding: Placed, wanted: tuple[str, ...]) -> dict[str, Array]:
        """Of a folded bundle: outputs of its graph by name."""
        self.profile.check({"B": len(encoding)})
        graph = self._graphs[LABELS.file]
        with failing_as(self.name, f"on {len(encoding)} pictures"):
            found = graph.run({}, self._kinds, {ENCODING.name: encoding})
            self.ran(graph.spec, *encoding.shape)
        return {t.name: array for t, array in zip(graph.spec.outputs, found) if t.name in wanted}

    def decode_tensor(self, encoding: Placed, keys: Array, values: Array, token_mask: NDArray[np.bool_]) -> Any:
        """As `decode`, with the logits as a torch tensor on the GPU: nothing waits for the host."""
        import torch

        feeds, where = self._asked(encoding, keys, values, token_mask), torch.device("cuda", self.index)
        answer: list[Any] = []

        def place(name: str, shape: tuple[int, ...]) -> int:
            answer.append(torch.empty(*shape, device=where))
            return int(answer[-1].data_ptr())

        with failing_as(self.name, f"on {len(encoding)} pictures with {len(keys)} prompts"):
            graph = self._graphs[MASK_DECODER.file]
            self._in_turn(answer, lambda: graph.enqueue(feeds, {ENCODING.name: encoding}, place))
            self.ran(MASK_DECODER, *encoding.shape, *token_mask.shape)
        return answer[0]

    def _in_turn(self, tensors: list[Any], run: Callable[[], None]) -> None:
        """`run` in the order of the caller's stream, on which `tensors` are made and used."""
        import torch

        where = torch.device("cuda", self.index)
        here, ours = torch.cuda.current_stream(where), torch.cuda.ExternalStream(self._queue.stream, where)
        ours.wait_stream(here)
        run()
        here.wait_stream(ours)
        for tensor in tensors:
            tensor.record_stream(ours)

    def _on_this_gpu(self, tensor: Any) -> Any:
        """The tensor. Raises BackendError where it is elsewhere."""
        where = tensor.device
        if where.type != "cuda" or (where.index or 0) != self.index:
            raise BackendError(f"{self.name} takes tensors on cuda:{self.index}, got one on {where}; move it, load the "
                               "engine with that device, or pass an array")  # fmt: skip
        return tensor

    def _asked(
        self, encoding: Placed, keys: Array, values: Array, token_mask: NDArray[np.bool_]
    ) -> dict[str, Array]:  # fmt: skip
        """The text of a question about encoded pictures. Raises InputError outside the profile."""
        self.profile.check({"B": len(encoding), "K": keys.shape[0], "L": token_mask.shape[1]})
        return {"text_keys": keys.astype(self._bits, copy=False), "text_values": values.astype(self._bits, copy=False),
                "token_mask": token_mask}  # fmt: skip
