"""TensorRT engines from a bundle, on the machine that runs them: `python -m digseg_export.to_tensorrt BUNDLE`.

Strongly typed for the intersection of TensorRT 10.3 (JetPack 6) to 11.x: no precision flag, no EXPLICIT_BATCH, no calibrator.
Needs the runtime install and TensorRT only, neither PyTorch nor onnx. Not run by us yet.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from digseg_engine.bundle import Bundle, open_bundle
from digseg_engine.contract import GraphSpec
from digseg_engine.errors import BackendError, DigsegError, VerificationError
from digseg_engine.runtime.backends import tensorrt_native as native
from digseg_engine.runtime.backends.tensorrt_library import TENSORRT, check_version, load
from digseg_engine.runtime.choice import check_golden, within_limits
from digseg_engine.runtime.cuda_driver import Driver
from digseg_engine.runtime.engine_store import EngineKey, building, engine_path, explain, load_plan, store
from digseg_engine.runtime.source import open_source
from digseg_export.inspector import check_precision_of
from digseg_export.network_check import precision_of
from digseg_export.plan_builder import BuildOptions, Progress, build_plan, check_labels, shapes_of


def require() -> Any:
    """The tensorrt module. Raises BackendError when it cannot be used here."""
    return load(TENSORRT)


def build_engines(
    folder: Path, options: BuildOptions, progress: Progress, trt: Any = None, driver: Driver | None = None
) -> list[Path]:
    """Build (or find) the engine of every graph of a bundle. Raises BackendError or VerificationError; keeps no bad plan."""
    trt = trt or require()
    check_version(TENSORRT, trt.__version__)
    driver = driver or Driver()
    bundle = open_bundle(folder)
    check_labels(bundle.vocabulary.folding if bundle.vocabulary else None)
    return [_engine(bundle, spec, options, progress, trt, driver) for spec in bundle.graphs.values()]


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
    with building(key, spec):
        try:
            path = engine_path(key, spec)
            load_plan(path, key)
            return path
        except BackendError:
            return _built(bundle, spec, key, options, progress, trt)


def _built(
    bundle: Bundle, spec: GraphSpec, key: EngineKey, options: BuildOptions, progress: Progress, trt: Any
) -> Path:  # fmt: skip
    began = time.perf_counter()
    plan, report = build(trt, bundle, spec, options, progress)
    counts = check_precision_of(report, precision_of(bundle, spec))
    facts = {"layers": dict(counts), "seconds": round(time.perf_counter() - began, 1), "builder_level": options.level,
             "workspace_mib": options.workspace_mib, "not_run_by_us_yet": True}  # fmt: skip
    return store(spec, plan, key, facts)


def build(trt: Any, bundle: Bundle, spec: GraphSpec, options: BuildOptions, progress: Progress) -> tuple[Any, str]:
    """(plan, inspector report) of one graph."""
    built = build_plan(trt, bundle.file(spec.file), shapes_of(bundle, spec), options, progress)
    logger = native.logger_of(trt)
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(built.plan)
    if engine is None:
        raise native.failure(f"{spec.file} was built but cannot be loaded", logger, "free GPU memory and try again")
    report = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return built.plan, str(report)


def explain_engines(folder: Path, version: str, driver: Driver) -> list[str]:
    """For every graph: which stored engines fit, and which field of the key missed in the others."""
    bundle = open_bundle(folder)
    keys: dict[GraphSpec, EngineKey] = {
        s: native.engine_key(bundle, s, version, driver) for s in bundle.graphs.values()
    }
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
