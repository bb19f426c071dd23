"""TensorRT-RTX plans of a bundle, built ahead of time on any machine: no GPU is needed, one plan serves several GPUs.

TensorRT-RTX compiles its kernels when a plan first runs, so a build takes seconds, and it names the compute capabilities
it is for. The plans travel as a folder of their own, see `digseg_engine.runtime.plans`. Built by us, not run by us yet.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from digseg_engine.bundle import Bundle, finish, open_bundle
from digseg_engine.contract import GraphSpec
from digseg_engine.errors import BackendError, UsageError, VerificationError
from digseg_engine.files import write_bytes
from digseg_engine.folders import writing
from digseg_engine.precisions import spec_of
from digseg_engine.runtime.backends import tensorrt_native as native
from digseg_engine.runtime.backends import tensorrt_rtx
from digseg_engine.runtime.backends.tensorrt_library import TENSORRT_RTX, load
from digseg_engine.runtime.choice import check_golden, within_limits
from digseg_engine.runtime.cuda_driver import Driver
from digseg_engine.runtime.engine_store import graph_hash
from digseg_engine.runtime.plans import FORMAT, MARK, open_plans, plan_name
from digseg_engine.runtime.source import Source
from digseg_export.network_check import check_network
from digseg_export.plan_builder import BuildOptions, Progress, build_plan, check_labels, shapes_of

TARGETS = (75, 80, 86, 89, 120)  # Turing, A100, Ampere, Ada, Blackwell
EXPLAINED = {"Int64 binding": "token_ids are int64 in the contract, and are given as int64"}


@dataclass(frozen=True)
class Row:
    """One plan: its graph, layers of the parsed network, those that cost time by type, bytes of weights and plan, seconds,
    and what the library warned of."""

    graph: str
    layers: int
    types: dict[str, int]
    weights: int
    plan: int
    seconds: float
    warnings: tuple[str, ...]

    @property
    def unexplained(self) -> list[str]:
        """The warnings that we have no explanation of."""
        return [text for text in self.warnings if not any(known in text for known in EXPLAINED)]


@dataclass(frozen=True)
class Plans:
    """The folder that was written, what it is for, a row for every plan, and what the golden sample said of them or why it
    was not asked."""

    folder: Path
    library: str
    targets: tuple[int, ...]
    rows: tuple[Row, ...]
    answer: str


def default_plans(bundle: Path) -> Path:
    """`digseg-tiny-fp16-tensorrt-rtx` beside `digseg-tiny-fp16`."""
    return bundle.with_name(f"{bundle.resolve().name}-{TENSORRT_RTX.name}")


def check_place(output: Path, bundle: Path) -> None:
    """Raises UsageError for plans that would lie in a bundle, which holds what was hashed and nothing else."""
    if output.resolve().is_relative_to(bundle.resolve()):
        raise UsageError(
            f"--engines {output} lies in the bundle {bundle}; expected a folder of its own; choose another"
        )


def parse_targets(text: str | None, precision: str, trt: Any) -> tuple[int, ...]:
    """ "75,8.9" -> (75, 89); None -> all of `TARGETS` that take the precision. Raises UsageError for a GPU that the library
    does not build for, or not in this precision."""
    if text is None:
        return tuple(target for target in TARGETS if target >= spec_of(precision).lowest[0])
    known = [name[2:] for name in dir(trt.ComputeCapability) if name.startswith("SM")]
    wanted = [part.strip().removeprefix("sm").replace(".", "") for part in text.lower().split(",") if part.strip()]
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        raise UsageError(
            f"--compute-capability {unknown[0] if unknown else repr(text)} is none that TensorRT-RTX {trt.__version__} builds "
            f"for; expected some of {', '.join(sorted(known, key=int))}; for Orin (87) and Hopper (90) build with --format "
            "tensorrt on the device"
        )
    targets = tuple(int(name) for name in dict.fromkeys(wanted))
    check_targets(targets, precision)
    return targets


def check_targets(targets: Sequence[int], precision: str) -> None:
    """Raises UsageError for the first target that the compiler would refuse in this precision."""
    lowest, why = spec_of(precision).lowest
    if older := [target for target in targets if target < lowest]:
        raise UsageError(f"--compute-capability {older[0]} does not apply to {precision}: {why}; expected {lowest} or newer, "
                         "or a bundle in fp16")  # fmt: skip


def build_plans(
    folder: Path, output: Path, targets: Sequence[int], options: BuildOptions, progress: Progress, trt: Any = None
) -> Plans:  # fmt: skip
    """Build the plan of every graph of the bundle at `folder` into the new folder `output`: all of them or nothing. Where a
    GPU they are for is at hand, they must be right on the bundle's golden sample.

    Raises BundleError for a damaged bundle, UsageError for an output or shapes that cannot be used, BackendError and
    VerificationError for a graph that cannot be parsed or built, is parsed into something else, or answers wrongly.
    """
    trt = trt or load(TENSORRT_RTX)
    check_place(output, folder)
    bundle = open_bundle(folder)
    check_labels(bundle.vocabulary.folding if bundle.vocabulary else None)
    check_targets(targets, str(bundle.manifest["precision"]["name"]))
    with writing(output, MARK) as draft:
        rows = tuple(_build(trt, bundle, spec, draft, targets, options, progress) for spec in bundle.graphs.values())
        finish(draft, _about(trt, bundle, targets, options, rows))
        progress("ask the golden sample")
        answer = _ask(trt, bundle, draft)
    return Plans(output, trt.__version__, tuple(targets), rows, answer)


def _ask(trt: Any, bundle: Bundle, folder: Path) -> str:
    """The golden sample through finished plans, where this machine can run them. Raises VerificationError."""
    usable = tensorrt_rtx.probe()
    try:
        if not usable.usable:
            raise BackendError(usable.reason)
        open_plans(folder, bundle, TENSORRT_RTX.name, trt.__version__).check_gpu(Driver().describe())
    except BackendError as cannot:
        return f"not run here: {cannot}"
    golden = Source(bundle, None).golden
    error, iou = check_golden(tensorrt_rtx.TensorrtRtxBackend(bundle, folder), golden)
    right, reason = within_limits(error, iou, golden)
    if not right:
        raise VerificationError(
            f"the plans of {bundle.folder} are {reason}; nothing was kept; run the bundle on onnxruntime"
        )
    return f"right on the golden sample: relative error {error:.2e}, mask IoU {iou:.4f}"


def _build(
    trt: Any, bundle: Bundle, spec: GraphSpec, folder: Path, targets: Sequence[int], options: BuildOptions, progress: Progress
) -> Row:  # fmt: skip
    progress(f"build {spec.file}")
    began, types = time.perf_counter(), {}

    def look(network: Any) -> None:
        types.update(check_network(network, bundle, spec))

    def say(text: str) -> None:
        progress(f"build {spec.file}: {text}")

    graph, shapes = bundle.file(spec.file), shapes_of(bundle, spec)
    built = build_plan(trt, graph, shapes, options, say, TENSORRT_RTX, targets, look)
    write_bytes(folder / plan_name(spec), built.plan)
    weights = sum(bundle.manifest["graphs"][spec.file]["weights"].values())
    seconds = round(time.perf_counter() - began, 2)
    return Row(spec.file, built.layers, types, weights, built.plan.nbytes, seconds, built.warnings)


def _about(
    trt: Any, bundle: Bundle, targets: Sequence[int], options: BuildOptions, rows: tuple[Row, ...]
) -> dict[str, Any]:
    """The manifest of a folder of plans: whose graphs, by which library, for which GPUs and shapes."""
    return {
        "format": FORMAT,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "bundle": bundle.digest,
        "library": {"name": TENSORRT_RTX.name, "version": trt.__version__},
        "targets": list(targets),
        "precision": bundle.manifest["precision"]["name"],
        "profile": native.bundle_profile(bundle).to_json(),
        "workspace_mib": options.workspace_mib,
        "graphs": {
            row.graph: {**asdict(row), "sha256": graph_hash(bundle, spec)}
            for row, spec in zip(rows, bundle.graphs.values())
        },
        "not_run_by_us_yet": True,
    }
