"""ONNX Runtime: the CPU, CUDA and TensorRT providers, each a backend of its own name.

A bundle holds, beside a graph, the graph that a CPU runs instead, over the same stored weights (`*.fp32.onnx`): the CPU provider
has no fp16 arithmetic and would cast around every operator, and prompts one after the other stay in its cache. A GPU
provider that cannot be created is an error: ONNX Runtime itself would go on with the CPU.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from digseg_engine.bundle import LARGEST_READ, weights_of
from digseg_engine.contract import IMAGE_ENCODER, GraphSpec
from digseg_engine.errors import BackendError
from digseg_engine.extras import install_line
from digseg_engine.runtime.backends import Array, Usable, in_one_line
from digseg_engine.runtime.backends.devices import no_gpu
from digseg_engine.runtime.backends.graphs import GraphBackend
from digseg_engine.runtime.machine import cores_if_bound

if TYPE_CHECKING:
    from digseg_engine.bundle import Bundle
    from digseg_engine.runtime.source import Source

PROVIDER = "CPUExecutionProvider"
PROVIDERS = {
    "onnxruntime": PROVIDER,
    "onnxruntime-cuda": "CUDAExecutionProvider",
    "onnxruntime-tensorrt": "TensorrtExecutionProvider",
}
EXTRAS = {  # what brings each, and where
    "onnxruntime": ("cpu", ""),
    "onnxruntime-cuda": ("gpu", " (NVIDIA GPU; remove onnxruntime first)"),
    "onnxruntime-tensorrt": ("gpu,tensorrt", " (NVIDIA GPU; remove onnxruntime first)"),
    "onnxruntime-tensorrt-rtx": ("onnxruntime-tensorrt-rtx", " (NVIDIA RTX GPU)"),
}
PLUGINS = {"onnxruntime-tensorrt-rtx": "NvTensorRTRTXExecutionProvider"}  # registered at run time, see `ort_plugin.py`
Provider = tuple[str, dict[str, str]]
FROM_MEMORY = "add_external_initializers_from_files_in_memory"  # of session options
IN_MEMORY = (
    PROVIDER,
    PROVIDERS["onnxruntime-cuda"],
)  # providers that take weights so; others may open the files themselves
PLACES = "session.record_ep_graph_assignment_info"  # remember which node runs on which provider (1.24 and newer)
# Arithmetic on shapes: GPU providers leave it to the CPU on purpose, where it belongs.
SHAPE_WORK = {"Shape", "Size", "Constant", "ConstantOfShape", "Gather", "Concat", "Unsqueeze", "Squeeze", "Slice", "Cast",
              "Reshape", "Range", "Identity", "Equal", "Where", "Add", "Sub", "Mul", "Div", "Mod", "Min", "Max", "Floor",
              "Ceil", "Expand", "ReduceProd"}  # fmt: skip
# A one-node Identity graph: enough to create a session for real.
PROBE = base64.b64decode("CAg6OQoQCgF4EgF5IghJZGVudGl0eRIBcFoQCgF4EgsKCQgBEgUKAxIBMWIQCgF5EgsKCQgBEgUKAxIBMUIECgAQDQ==")


def install(name: str) -> str:
    """What to type to get a backend."""
    extra, remark = EXTRAS[name]
    return install_line(extra) + remark


def probe(name: str = "onnxruntime") -> Usable:
    """Create and run a real session on a one-node graph."""
    try:
        import onnxruntime
    except ImportError as error:
        return Usable(name, False, "", f"not installed ({error})", install(name))
    wanted = PROVIDERS[name]
    try:
        preload(onnxruntime, wanted)
        session = create_session(onnxruntime, PROBE, session_options(onnxruntime), wanted)
        session.run(None, {"x": np.zeros(_probe_shape(session), np.float32)})
    except Exception as error:
        return Usable(name, False, "", in_one_line(error).removesuffix(f"; {install(name)}"), install(name))
    return Usable(name, True, f"onnxruntime {onnxruntime.__version__}, {wanted}")


class OrtBackend(GraphBackend):
    """The graphs of a bundle as ONNX Runtime sessions. `Run` on one session is thread-safe by contract."""

    def __init__(self, source: Source, name: str = "onnxruntime") -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise BackendError(f"backend {name} cannot run here: {error}; install it with {install(name)}") from error
        self.name = name
        self._runtime, self._provider = onnxruntime, {**PROVIDERS, **PLUGINS}[name]
        if self._provider == PROVIDER:
            no_gpu(source, name)
        preload(onnxruntime, self._provider)
        self._threads = source.threads
        self._brief = source.brief and self._provider == PROVIDER
        bundle = source.need_bundle(name)
        precision = bundle.manifest["precision"]["name"]
        self.open(bundle, self._session)
        wide = self._graph(bundle, IMAGE_ENCODER) != IMAGE_ENCODER.file
        stored = f"{precision} weights widened to fp32" if wide else precision
        self.detail = f"onnxruntime {onnxruntime.__version__}, {self._provider}, {stored}"
        halves = self._image.get_outputs()[0].type == "tensor(float16)"
        self._text_dtype = np.float16 if halves else np.float32

    def _session(self, bundle: Bundle, spec: GraphSpec) -> Any:
        options = session_options(self._runtime, self._threads)
        graph = self._graph(bundle, spec)
        if self._brief:  # creates a session in a third of the time; a run takes a quarter longer
            options.graph_optimization_level = self._runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        in_memory = self._provider in IN_MEMORY
        return opened_as_hashed(bundle, graph, options, in_memory, lambda model: create_session(
            self._runtime, model, options, self._provider, self.providers(spec), str(bundle.file(graph))))  # fmt: skip

    def providers(self, spec: GraphSpec) -> list[Provider]:
        """The providers of a graph's session, first the one asked for, each with its options."""
        return [(self._provider, {})]

    def _graph(self, bundle: Bundle, spec: GraphSpec) -> str:
        """On the CPU the graph made for it where the bundle has one, else the graph itself: its file's name."""
        on_cpu = self._provider == PROVIDER and spec.cpu_file in bundle.manifest["files"]
        return spec.cpu_file if on_cpu else spec.file

    def named(self, graph: Any, feeds: dict[str, Array], wanted: tuple[str, ...]) -> dict[str, Array]:
        names = [output.name for output in graph.get_outputs() if output.name in wanted]
        options = self._runtime.RunOptions()
        options.only_execute_path_to_fetches = True
        return dict(zip(names, graph.run(names, feeds, options)))

    def answers(self, graph: Any, feeds: dict[str, Array]) -> list[Array]:
        results: list[Array] = graph.run(None, feeds)
        return results


def preload(runtime: Any, provider: str) -> None:
    """Load the CUDA and cuDNN libraries that pip installed, where a provider needs them and this release can
    (1.21 and newer); those on the system's path are found without. What is missing is said when a session is made. A release
    that was built without the provider is left alone: 1.22 prints a warning to standard output."""
    if provider in set(runtime.get_available_providers()) - {PROVIDER} and hasattr(runtime, "preload_dlls"):
        with suppress(Exception):
            runtime.preload_dlls()


def create(source: Source, name: str) -> OrtBackend:
    """The backend of a provider; those of a GPU also take tensors there."""
    if PROVIDERS.get(name) == PROVIDER:
        return OrtBackend(source, name)
    from digseg_engine.runtime.backends.ort_cuda import OrtCudaBackend

    return OrtCudaBackend(source, name)


def opened_as_hashed(
    bundle: Bundle, graph: str, options: Any, in_memory: bool, create: Callable[[Path | bytes], Any]
) -> Any:
    """A session on the very bytes that were hashed, by `create`, which takes a graph or its path.

    The graph asks for nothing but its own weights. Those are handed over as bytes, read once, where this ONNX Runtime takes
    them so (`in_memory`; 1.24 and newer) and they are no larger than LARGEST_READ. Larger ones are opened by their path,
    and refused when their seal is another one afterwards. Raises BundleError.
    """
    body, data = bundle.graph(graph), weights_of(graph)
    size = int(bundle.manifest["files"].get(data, {"size": 0})["size"])
    if in_memory and size <= LARGEST_READ and hasattr(options, FROM_MEMORY):
        weights = bundle.read(data) if size else b""
        if weights:
            getattr(options, FROM_MEMORY)([data], [weights], [size])
        return create(body)
    session = create(bundle.file(graph))
    for name in (graph, data) if size else (graph,):
        bundle.unchanged(name)
    return session


def create_session(
    runtime: Any, model: Path | bytes, options: Any, provider: str = PROVIDER, providers: list[Provider] | None = None,
    name: str = "",
) -> Any:  # fmt: skip
    """A session for a graph, called `name` in messages; asserts that the provider asked for is the one that runs, and that
    nothing but arithmetic on shapes is left to the CPU where that is a GPU."""
    name = name or (str(model) if isinstance(model, Path) else "a one-node graph")
    offered = runtime.get_available_providers()
    if provider not in offered:
        fix = next(install(backend) for backend, known in PROVIDERS.items() if known == provider)
        raise BackendError(f"onnxruntime here has no {provider} (it has {', '.join(offered)}); {fix}")
    if provider != PROVIDER:
        options.add_session_config_entry(PLACES, "1")
    try:
        session = runtime.InferenceSession(
            str(model) if isinstance(model, Path) else model, options, providers=providers or [(provider, {})],
            enable_fallback=0,  # else it goes on with the CPU by itself, now or while running, and says so on standard output
        )  # fmt: skip
    except Exception as error:
        raise BackendError(
            f"onnxruntime cannot load {name} with {provider}: {in_one_line(error)}; export the bundle again, or update "
            "onnxruntime"
        ) from error
    check_places(session, name, provider)
    return session


def check_places(session: Any, name: str, provider: str) -> None:
    """Raises BackendError when a session runs on another provider, or leaves more than arithmetic on shapes to the CPU."""
    if session.get_providers()[0] != provider:
        raise BackendError(f"{name} runs on {session.get_providers()[0]}, expected {provider}; its libraries could not be "
                           "loaded, see `digseg doctor`")  # fmt: skip
    if strays := left_to_cpu(session) if provider != PROVIDER else []:
        raise BackendError(f"{name}: {provider} leaves {len(strays)} nodes to the CPU ({', '.join(strays[:3])}); nothing "
                           "goes on there in silence: update onnxruntime, or choose --backend onnxruntime")  # fmt: skip


def left_to_cpu(session: Any) -> list[str]:
    """`name (type)` of the nodes that a session computes on the CPU, arithmetic on shapes apart; none where this release
    does not tell."""
    places = getattr(session, "get_provider_graph_assignment_info", None)
    try:
        found = [] if places is None else places()
    except Exception:  # this release was not asked to remember, or does not for this provider
        return []
    return [f"{node.name} ({node.op_type})" for part in found if part.ep_name == PROVIDER
            for node in part.get_nodes() if node.op_type not in SHAPE_WORK]  # fmt: skip


def session_options(runtime: Any, threads: int | None = None) -> Any:
    """Options of a session as every provider of ours has them."""
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.enable_mem_pattern = False  # steadier memory when shapes vary
    options.intra_op_num_threads = threads or cores_if_bound()  # 0: its own choice
    return options


def _probe_shape(session: Any) -> list[int]:
    return [size if isinstance(size, int) else 1 for size in session.get_inputs()[0].shape]
