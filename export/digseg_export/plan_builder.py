"""One graph of a bundle to one plan, by TensorRT 10.3 to 11.x or TensorRT-RTX: the calls that both have.

Strongly typed: no precision flag, no EXPLICIT_BATCH, no calibrator. Needs the runtime install and the library only,
neither PyTorch nor onnx. No error recorder is set: the log says the same, and TensorRT-RTX 1.7 crashes when a parser is
freed after a network that has one.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import SIGINT, SIGTERM
from threading import current_thread, main_thread
from typing import Any

from digseg_engine.bundle import Bundle
from digseg_engine.contract import FOLDED_CHUNK, Folding, GraphSpec
from digseg_engine.errors import BackendError, UsageError
from digseg_engine.files import write_bytes
from digseg_engine.runtime.backends import tensorrt_native as native
from digseg_engine.runtime.backends.tensorrt_library import TENSORRT, Library
from digseg_engine.runtime.profile import check_range

MIB = 1 << 20
Progress = Callable[[str], None]
Shape = tuple[int, ...]
Shapes = dict[str, tuple[Shape, Shape, Shape]]


@dataclass(frozen=True)
class BuildOptions:
    """Workspace in MiB, builder level 0 to 5, timing cache file."""

    workspace_mib: int = 2048
    level: int = 3
    timing_cache: Path | None = None


@dataclass(frozen=True)
class Made:
    """A plan, the layers of the network that the parser made of the graph, and every warning."""

    plan: memoryview
    layers: int
    warnings: tuple[str, ...]


def build_plan(
    trt: Any, graph: Path, shapes: Shapes, options: BuildOptions, progress: Progress,
    library: Library = TENSORRT, targets: Sequence[int] = (), look: Callable[[Any], None] = lambda network: None,
) -> Made:  # fmt: skip
    """The plan of one graph file for (smallest, usual, largest) shapes of its inputs by name. targets: compute capabilities
    as 89, of a library that builds ahead; look: may refuse the parsed network before the build.

    Raises BackendError with what the library said, and whatever stopped the build (Ctrl-C).
    """
    logger = native.logger_of(trt)
    builder = trt.Builder(logger)
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # always on in 11, gone some day
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parse(trt, logger, network, graph, library)
    look(network)
    config = builder.create_builder_config()
    _configure(trt, config, options)
    monitor = config.progress_monitor = make_monitor(trt, progress)
    if library.ahead:
        _name_targets(trt, config, targets, library)
    profile = builder.create_optimization_profile()
    for name, ends in shapes.items():
        profile.set_shape(name, *ends)
    if (config.add_optimization_profile(profile) or 0) < 0:
        why = f"{library.title} refuses the shapes {shapes} of {graph.name}"
        raise native.failure(why, logger, "export with other shapes")
    if library.times:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.NONE
        config.builder_optimization_level = options.level
        _use_timing_cache(config, options.timing_cache)
    with postponed() as monitor.asked_to_stop:
        plan = builder.build_serialized_network(network, config)
    if monitor.stopped is not None:
        raise monitor.stopped
    if plan is None:
        less = (
            "a smaller --workspace, a lower --builder-optimization-level" if library.times else "a larger --workspace"
        )
        raise native.failure(
            f"{graph.name} could not be built by {library.title}", logger, f"use {less} or smaller shapes"
        )
    if library.times:
        _keep_timing_cache(config, options.timing_cache)
    return Made(memoryview(plan), network.num_layers, tuple(logger.warnings))


def parse(trt: Any, logger: Any, network: Any, path: Path, library: Library = TENSORRT) -> None:
    """Read a graph into a network. Raises BackendError naming the first nodes that the parser does not take."""
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(str(path)):  # by path: the weights file beside it is found from there
        return
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    words = "; ".join(f"{e.node_name()} ({e.node_operator()}): {e.desc()}" for e in errors[:3])
    raise native.failure(f"{library.title} cannot read {path.name} ({words or 'no node named'})", logger,
                         "report the node; the bundle still runs on onnxruntime")  # fmt: skip


def _configure(trt: Any, config: Any, options: BuildOptions) -> None:
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib * MIB)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or the inspector knows no types
    config.max_aux_streams = 0  # predictable memory, and one stream to capture
    config.clear_flag(trt.BuilderFlag.TF32)  # true float32, as every other backend computes


def _name_targets(trt: Any, config: Any, targets: Sequence[int], library: Library) -> None:
    config.num_compute_capabilities = len(targets)
    for i, target in enumerate(targets):
        if not config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{target}"), i):
            raise BackendError(f"{library.title} refuses compute capability {target}; leave it out")


def shapes_of(bundle: Bundle, spec: GraphSpec) -> Shapes:
    """The bundle's shape profile for the inputs of one graph. Raises UsageError for shapes that the model does not take:
    the library knows nothing of strides, and would build a plan that fails when it runs."""
    profile, sizes = native.bundle_profile(bundle), native.model_sizes(bundle)
    for axis, span in profile.ranges.items():
        try:
            check_range(axis, span, int(bundle.manifest["model"]["stride"]))
        except UsageError as error:
            raise UsageError(f"the shapes in the manifest of {bundle.folder}: {error}") from error
    found = {}
    for tensor in spec.inputs:
        low, usual, high = (profile.shape(tensor.axes, end, sizes) for end in ("min", "opt", "max"))
        if spec.file.startswith("text") and profile.ranges["K"].static:
            low = (1, *low[1:])  # prompts are encoded one by one and cached
        found[tensor.name] = (low, usual, high)
    return found


def check_labels(folding: Folding | None) -> None:
    """Raises UsageError for a folded bundle with more names than a plan can hold: more are asked in rounds, by a `Scan` that
    TensorRT-RTX's parser does not take."""
    if folding is not None and folding.names > FOLDED_CHUNK:
        raise UsageError(f"a plan can hold {FOLDED_CHUNK} names at most, and this vocabulary has {folding.names}: TensorRT "
                         "takes no rounds of them; fold fewer, or run the bundle on onnxruntime")  # fmt: skip


def _use_timing_cache(config: Any, path: Path | None) -> None:
    held = path.read_bytes() if path and path.is_file() else b""
    config.set_timing_cache(config.create_timing_cache(held), False)


def _keep_timing_cache(config: Any, path: Path | None) -> None:
    if path:
        write_bytes(path, bytes(memoryview(config.get_timing_cache().serialize())))


@contextmanager
def postponed() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM wait until the block is left; the value tells whether one has come.

    Raised inside a callback of the library they would be swallowed by its frames, and the build would go on.
    """
    came: list[int] = []
    if current_thread() is not main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in (SIGINT, SIGTERM)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def make_monitor(trt: Any, progress: Progress) -> Any:
    """A progress monitor that says phase and step in words, and ends the build at the next step when it is asked to, or
    when `progress` raises; `stopped` is what it raised."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.steps: dict[str, int] = {}
            self.stopped: BaseException | None = None
            self.asked_to_stop: Callable[[], bool] = lambda: False

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                progress(f"{phase_name} {step + 1}/{self.steps.get(phase_name, 0)}")
            except BaseException as error:  # it must not go through the library's own frames
                self.stopped = error
            return self.stopped is None and not self.asked_to_stop()

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

    return Monitor()
