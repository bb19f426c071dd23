"""Engines from the command line: of a bundle that was exported a moment ago, or of a ready one (`--bundle`)."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from digseg_engine.bundle import read_manifest
from digseg_engine.folders import check_target
from digseg_engine.runtime.plans import MARK
from digseg_export.progress import Progress
from digseg_export.request import Request

if TYPE_CHECKING:
    from rich.console import Console

    from digseg_export.to_tensorrt_rtx import Plans


@dataclass(frozen=True)
class Engines:
    """What was built: engines in this user's cache, or a folder of plans."""

    paths: tuple[Path, ...] = ()
    plans: Plans | None = None

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        if self.plans is None:
            return {"engines": [str(path) for path in self.paths]}
        return {"plans": {**asdict(self.plans), "folder": str(self.plans.folder)}}


class Builder:
    """Everything about a build of engines that can be wrong before there is a bundle, looked at when it is made.

    Raises BackendError where the library is missing, UsageError for GPUs it does not build for or an unusable output.
    """

    def __init__(self, request: Request, bundle: Path) -> None:
        self._request, self._bundle = request, bundle
        if request.format != "tensorrt-rtx":
            from digseg_export.to_tensorrt import require

            self._trt = require()
            return
        from digseg_engine.runtime.backends.tensorrt_library import TENSORRT_RTX, load
        from digseg_export.to_tensorrt_rtx import check_place, default_plans, parse_targets

        self._trt = load(TENSORRT_RTX)
        ready = request.bundle is not None
        precision = str(read_manifest(bundle)["precision"]["name"]) if ready else request.precision
        self.targets = parse_targets(request.compute_capability, precision, self._trt)
        self.output = request.engines or default_plans(bundle)
        check_place(self.output, bundle)
        check_target(self.output, MARK)

    def preview(self) -> dict[str, Any]:
        """For --dry-run: what would be built."""
        if self._request.format != "tensorrt-rtx":
            return {"engines": "in this user's cache"}
        return {"plans": str(self.output), "compute capabilities": list(self.targets)}

    def run(self, progress: Progress) -> Engines:
        """Build. Raises BackendError or VerificationError; nothing is kept then."""
        options = self._request.build_options()
        if self._request.format == "tensorrt-rtx":
            from digseg_export.to_tensorrt_rtx import build_plans

            return Engines(plans=build_plans(self._bundle, self.output, self.targets, options, progress, self._trt))
        from digseg_export.to_tensorrt import build_engines, check_engines

        paths = build_engines(self._bundle, options, progress, self._trt)
        check_engines(self._bundle, paths, self._trt)
        return Engines(tuple(paths))


def show(console: Console, engines: Engines, bundle: Path, quiet: bool) -> None:
    """The table of plans, every warning that is not explained, and what to do with the folder."""
    for path in engines.paths:
        print(f"engine {path}")
    if (plans := engines.plans) is None:
        return
    if not quiet:
        console.print(_table(plans))
    for row in plans.rows:
        for text in row.unexplained:
            console.print(f"warning about {row.graph}: {text}", highlight=False, markup=False)
    gpus = ", ".join(map(str, plans.targets))
    print(f"plans of {bundle} for compute capability {gpus} written to {plans.folder}; {plans.answer}")


def _table(plans: Plans) -> Any:
    from rich.table import Table
    from rich.text import Text

    title = f"built by TensorRT-RTX {plans.library}, weights and plans in MB: {plans.folder}"
    table = Table(title=Text(title), title_justify="left")
    for column in ("graph", "layers", "of them in", "weights", "plan", "seconds"):
        table.add_column(column, justify="left" if column in ("graph", "of them in") else "right")
    for row in plans.rows:
        types = ", ".join(f"{count} {name}" for name, count in sorted(row.types.items()))
        sizes = (f"{size / 1e6:.2f}" for size in (row.weights, row.plan))
        table.add_row(row.graph, str(row.layers), types, *sizes, f"{row.seconds:.1f}")
    return table


def tried_with(bundle: Path, folded: bool = False) -> str:
    """The command that tries a bundle."""
    return f"  digseg segment PICTURE {'' if folded else '-p PROMPT '}-b {shlex.quote(str(bundle))}"
