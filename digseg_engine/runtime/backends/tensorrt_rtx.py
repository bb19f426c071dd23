"""TensorRT-RTX plans of a bundle, built ahead of time: opened from the folder that the user names, and from nowhere else.

Kernels are compiled when a shape first runs and kept in this user's own cache, so that the next start is quick; the library
replays a CUDA graph for a shape that comes again. Built by us, not run by us yet.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from digseg_engine.bundle import Bundle
from digseg_engine.contract import GraphSpec
from digseg_engine.errors import BackendError
from digseg_engine.extras import install_line
from digseg_engine.files import write_bytes
from digseg_engine.runtime.backends import Usable, in_one_line
from digseg_engine.runtime.backends.devices import gpu_index
from digseg_engine.runtime.backends.tensorrt_library import TENSORRT_RTX, load
from digseg_engine.runtime.backends.tensorrt_native import TensorrtBackend, logger_of
from digseg_engine.runtime.cuda_driver import Driver
from digseg_engine.runtime.plans import HOW_TO_BUILD, open_plans
from digseg_engine.runtime.private_cache import private_folder, read_private

if TYPE_CHECKING:
    from digseg_engine.runtime.source import Source

NAME = TENSORRT_RTX.name
LARGEST_CACHE = 4 << 30  # bytes of compiled kernels
SHAPES = 64  # after this many different ones the kernels are not written again


def probe() -> Usable:
    """Can plans run here? TensorRT-RTX, and a GPU that it builds for."""
    try:
        trt = load(TENSORRT_RTX)
    except Exception as error:
        return Usable(NAME, False, "", in_one_line(error).split("; install it")[0], install_line(NAME))
    try:
        device = Driver().describe()
    except Exception as error:
        reason = f"{in_one_line(error)}; plans can be built here and run elsewhere"
        return Usable(NAME, False, "", reason, "a machine with an NVIDIA RTX GPU and its driver")
    number = device.compute_capability.replace(".", "")
    if not hasattr(trt.ComputeCapability, f"SM{number}"):
        reason = f"{device.name} has compute capability {device.compute_capability}, none that TensorRT-RTX is for"
        return Usable(NAME, False, "", reason, "another --backend")
    return Usable(NAME, True, f"{NAME} {trt.__version__} on {device.name}, not run by us yet")


def can_build() -> Usable:
    """Can plans be built here? That takes no GPU."""
    name = "TensorRT-RTX plans (build)"
    try:
        trt = load(TENSORRT_RTX)
        builder = trt.Builder(logger_of(trt))
        if builder is None:
            raise BackendError("no builder could be created")
    except Exception as error:
        return Usable(name, False, "", in_one_line(error).split("; install it")[0], install_line(f"export,{NAME}"))
    targets = sorted(int(n[2:]) for n in dir(trt.ComputeCapability) if n.startswith("SM"))
    return Usable(name, True, f"TensorRT-RTX {trt.__version__} builds for {', '.join(map(str, targets))}")


def create(source: Source) -> TensorrtRtxBackend:
    """The backend over the plans that the source names. Raises BackendError when it names none."""
    if source.engines is None:
        raise BackendError(f"backend {NAME} runs plans built ahead of time, and no folder of plans was named; pass "
                           f"engines=FOLDER (--engines FOLDER); {HOW_TO_BUILD}")  # fmt: skip
    return TensorrtRtxBackend(source.need_bundle(NAME), source.engines, index=gpu_index(source, NAME))


class TensorrtRtxBackend(TensorrtBackend):
    """The graphs of a bundle as plans of the folder `engines`, on GPU number `index`. Thread-safe: one lock per graph.

    Raises BackendError for plans of another bundle, version or GPU, and for damaged ones.
    """

    name = NAME
    library = TENSORRT_RTX

    def __init__(
        self, bundle: Bundle, engines: Path, trt: Any = None, driver: Driver | None = None, index: int = 0
    ) -> None:  # fmt: skip
        trt = trt or load(TENSORRT_RTX)
        self._plans = open_plans(engines, bundle, TENSORRT_RTX.name, trt.__version__)
        driver = driver or Driver(index)
        self._plans.check_gpu(driver.describe())
        self._caches: dict[str, tuple[Any, Path]] = {}
        self._met: set[tuple[str, tuple[int, ...]]] = set()
        self._writing = Lock()
        super().__init__(bundle, trt, driver, index)

    def _plan(self, bundle: Bundle, spec: GraphSpec) -> tuple[Path, bytes]:
        return self._plans.path(spec), self._plans.read(spec)

    def _context(self, engine: Any, spec: GraphSpec) -> Any:
        """A context that replays CUDA graphs, with the kernels that earlier starts have compiled."""
        config = engine.create_runtime_config()
        cache, path = config.create_runtime_cache(), self._cache_path(spec)
        with suppress(FileNotFoundError):
            cache.deserialize(read_private(path, LARGEST_CACHE))  # refused by the library where anything differs
        config.set_runtime_cache(cache)
        config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self._caches[spec.file] = (cache, path)
        return engine.create_execution_context(config)

    def _cache_path(self, spec: GraphSpec) -> Path:
        about = f"{self._plans.sha256(spec)} {self._trt.__version__} {self._driver.describe()}"
        folder = private_folder(NAME, hashlib.sha256(about.encode()).hexdigest()[:20])
        return folder / spec.file.replace(".onnx", ".kernels")

    def ran(self, spec: GraphSpec, *shape: int) -> None:
        """Write what was compiled, when a shape ran for the first time."""
        if (spec.file, shape) in self._met or len(self._met) >= SHAPES:
            return
        with self._writing:
            self._met.add((spec.file, shape))
            cache, path = self._caches[spec.file]
            write_bytes(path, bytes(memoryview(cache.serialize())))
            path.chmod(0o600)
