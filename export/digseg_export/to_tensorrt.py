"""TensorRT engines from a bundle, on the machine that runs them: `python -m digseg_export.to_tensorrt BUNDLE`.

Strongly typed for the intersection of TensorRT 10.3 (JetPack 6) to 11.x: no precision flag, no EXPLICIT_BATCH, no calibrator.
Needs the runtime install and TensorRT only, neither PyTorch nor onnx. Not run by us yet.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from digseg_engine.bundle import Bundle, open_bundle
from digseg_engine.contract import GRAPHS, GraphSpec
from digseg_engine.errors import BackendError, DigsegError, VerificationError
from digseg_engine.runtime.backends import tensorrt_native as native
from digseg_engine.runtime.choice import check_golden, within_limits
from digseg_engine.runtime.cuda_driver import Driver
from digseg_engine.runtime.engine_store import EngineKey, engine_path, explain, load_plan, store
from digseg_engine.runtime.source import open_source
from digseg_export.inspector import check_precision_of

MIB = 1 << 20
Progress = Callable[[str], None]


@dataclass(frozen=True)
class BuildOptions:
    """Workspace in MiB, builder level 0 to 5, timing cache file."""

    workspace_mib: int = 2048
    level: int = 3
    timing_cache: Path | None = None


def require() -> Any:
    """The tensorrt module. Raises BackendError when it cannot be used here."""
    return native.import_tensorrt()


def build_engines(
    folder: Path, options: BuildOptions, progress: Progress, trt: Any = None, driver: Driver | None = None
) -> list[Path]:
    """Build (or find) the engine of every graph of a bundle. Raises BackendError or VerificationError; keeps no bad plan."""
    trt = trt or require()
    native.check_version(trt.__version__)
    driver = driver or Driver()
    bundle = open_bundle(folder)
    return [_engine(bundle, spec, options, progress, trt, driver) for spec in GRAPHS.values()]


def check_engines(
    folder: Path, paths: list[Path], trt: Any = None, driver: Driver | None = None
) -> tuple[float, float]:
    """(relative error, mask IoU) of a bundle's engines on its golden sample: the numbers PyTorch gave at export.

    Raises VerificationError when they are over the bundle's limits; the plans at `paths` are removed then.
    """
    source = open_source(folder)
    error, iou = check_golden(native.TensorrtBackend(source.need_bundle("tensorrt"), trt, driver), source.golden)
    right, reason = within_limits(error, iou, source.golden)
    if not right:
        for path in paths:
            path.unlink(missing_ok=True)
            path.with_suffix(".json").unlink(missing_ok=True)
        raise VerificationError(f"the engines of {folder} are {reason}; nothing was kept; build them with another TensorRT, "
                                "or run the bundle on onnxruntime")  # fmt: skip
    return error, iou


def _engine(
    bundle: Bundle, spec: GraphSpec, options: BuildOptions, progress: Progress, trt: Any, driver: Driver
) -> Path:
    key = native.engine_key(bundle, spec, trt.__version__, driver)
    path = engine_path(key, spec)
    try:
        load_plan(path, key)
        return path
    except BackendError:
        began = time.perf_counter()
    logger = native.make_logger(trt)
    plan, report = build(trt, logger, bundle, spec, options, progress)
    counts = check_precision_of(report, key.precision)
    facts = {"layers": dict(counts), "seconds": round(time.perf_counter() - began, 1), "builder_level": options.level,
             "workspace_mib": options.workspace_mib, "not_run_by_us_yet": True}  # fmt: skip
    return store(spec, plan, key, facts)


def build(
    trt: Any, logger: Any, bundle: Bundle, spec: GraphSpec, options: BuildOptions, progress: Progress
) -> tuple[Any, str]:
    """(plan, inspector report) of one graph."""
    builder = trt.Builder(logger)
    recorder = make_recorder(trt)
    builder.error_recorder = recorder
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # always on in 11, gone some day
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    _parse(trt, logger, network, bundle.file(spec.file))
    config = _config(trt, builder, options, progress)
    config.add_optimization_profile(_profile(builder, bundle, spec))
    _use_timing_cache(config, options.timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        said = "; ".join(recorder.errors) or "no error recorded"
        raise native.failure(f"{spec.file} could not be built ({said})", logger,
                             "use a smaller --workspace, a lower --builder-optimization-level or smaller shapes")  # fmt: skip
    _keep_timing_cache(config, options.timing_cache)
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise native.failure(f"{spec.file} was built but cannot be loaded", logger, "free GPU memory and try again")
    report = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return memoryview(plan), str(report)


def _parse(trt: Any, logger: Any, network: Any, path: Path) -> None:
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(str(path)):  # by path: the weights file beside it is found from there
        return
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    words = "; ".join(f"{e.node_name()} ({e.node_operator()}): {e.desc()}" for e in errors[:3])
    raise native.failure(f"TensorRT cannot read {path.name} ({words or 'no node named'})", logger,
                         "report the node; the bundle still runs on onnxruntime")  # fmt: skip


def _config(trt: Any, builder: Any, options: BuildOptions, progress: Progress) -> Any:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib * MIB)
    config.builder_optimization_level = options.level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or the inspector knows no types
    config.max_aux_streams = 0  # predictable memory, and one stream to capture
    config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.NONE
    config.clear_flag(trt.BuilderFlag.TF32)  # true float32, as every other backend computes
    config.progress_monitor = make_monitor(trt, progress)
    return config


def _profile(builder: Any, bundle: Bundle, spec: GraphSpec) -> Any:
    shapes, sizes = native.bundle_profile(bundle), native.model_sizes(bundle)
    profile = builder.create_optimization_profile()
    for tensor in spec.inputs:
        low, usual, high = (shapes.shape(tensor.axes, end, sizes) for end in ("min", "opt", "max"))
        if spec.file.startswith("text") and shapes.ranges["K"].static:
            low = (1, *low[1:])  # prompts are encoded one by one and cached
        profile.set_shape(tensor.name, low, usual, high)
    return profile


def _use_timing_cache(config: Any, path: Path | None) -> None:
    held = path.read_bytes() if path and path.is_file() else b""
    config.set_timing_cache(config.create_timing_cache(held), False)


def _keep_timing_cache(config: Any, path: Path | None) -> None:
    if path:
        partial = path.with_name(path.name + ".tmp")
        partial.write_bytes(memoryview(config.get_timing_cache().serialize()))
        partial.replace(path)


def make_monitor(trt: Any, progress: Progress) -> Any:
    """A progress monitor that says phase and step in words; Ctrl-C stops the build at the next step."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                progress(f"{phase_name} {step + 1}/{self.steps.get(phase_name, 0)}")
            except KeyboardInterrupt:
                return False
            return True

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

    return Monitor()


def make_recorder(trt: Any) -> Any:
    """An error recorder: TensorRT returns None and says why only here and in the log."""

    class Recorder(trt.IErrorRecorder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []
            self.codes: list[Any] = []

        def num_errors(self) -> int:
            return len(self.errors)

        def get_error_code(self, arg0: int) -> Any:
            return self.codes[arg0]

        def get_error_desc(self, arg0: int) -> str:
            return self.errors[arg0]

        def has_overflowed(self) -> bool:
            return False

        def clear(self) -> None:
            self.errors, self.codes = [], []

        def report_error(self, arg0: Any, arg1: str) -> bool:
            self.codes.append(arg0)
            self.errors.append(arg1)
            return False

    return Recorder()


def explain_engines(folder: Path, version: str, driver: Driver) -> list[str]:
    """For every graph: which stored engines fit, and which field of the key missed in the others."""
    bundle = open_bundle(folder)
    keys: dict[GraphSpec, EngineKey] = {s: native.engine_key(bundle, s, version, driver) for s in GRAPHS.values()}
    return [line for spec, key in keys.items() for line in explain(spec, key)]


def main(arguments: list[str] | None = None) -> int:
    """Command line of the on-device build; exit code 0, 1 for failure, 2 for usage."""
    parser = argparse.ArgumentParser(prog="digseg-export.to_tensorrt", description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--workspace", type=int, default=2048, help="MiB for tactics")
    parser.add_argument("--builder-optimization-level", type=int, default=3, choices=range(6))
    parser.add_argument("--timing-cache", type=Path)
    parser.add_argument("--explain", action="store_true", help="say which stored engine fits, or which field missed")
    typed = parser.parse_args(arguments)
    try:
        trt = require()
        if typed.explain:
            print("\n".join(explain_engines(typed.bundle, trt.__version__, Driver())))
            return 0
        options = BuildOptions(typed.workspace, typed.builder_optimization_level, typed.timing_cache)
        paths = build_engines(typed.bundle, options, lambda text: print(text, file=sys.stderr), trt)
        error, iou = check_engines(typed.bundle, paths, trt)
        print("\n".join(map(str, paths)))
        print(f"golden sample: relative error {error:.2e}, mask IoU {iou:.4f}")
    except DigsegError as error:
        print(f"digseg-export.to_tensorrt: error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
