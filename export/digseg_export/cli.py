"""`digseg-export [MODEL] --precision fp16`: a checkpoint becomes a verified bundle."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from digseg_engine.cli import guarded
from digseg_export.request import Request

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def export(
    model: Annotated[
        Path | None, typer.Argument(help="checkpoint directory; the bundled digseg-tiny when left out")
    ] = None,
    precision: Annotated[str, typer.Option(help="fp32, fp16, bf16, int8 or fp8")] = "fp16",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="bundle to write [default: MODEL-PRECISION]")
    ] = None,
    format: Annotated[str, typer.Option(help="onnx; all: also build TensorRT engines here; tensorrt: the same")] = "onnx",
    target: Annotated[str | None, typer.Option(help="device whose on-device build script to add, as jetson-orin")] = None,
    imgsz: Annotated[str | None, typer.Option(help="fixed picture size: 512, or HEIGHTxWIDTH")] = None,
    batch: Annotated[int | None, typer.Option(help="fixed number of pictures")] = None,
    prompts: Annotated[int | None, typer.Option(help="fixed number of prompts")] = None,
    min_shapes: Annotated[str | None, typer.Option("--minShapes", help="as segmenter.image:1x3x256x256")] = None,
    opt_shapes: Annotated[str | None, typer.Option("--optShapes", help="in trtexec's spelling, comma separated")] = None,
    max_shapes: Annotated[str | None, typer.Option("--maxShapes", help="largest shapes a request may have")] = None,
    calibration: Annotated[Path | None, typer.Option(help="folder of pictures and prompts.txt [default: scenes]")] = None,
    auto_islands: Annotated[bool, typer.Option("--auto-islands", help="keep in float32 what the bisect names")] = False,
    islands: Annotated[str, typer.Option(help="measured: by kind and by measured range; kinds: by kind alone")] = "measured",
    atol: Annotated[float | None, typer.Option(help="largest absolute error allowed")] = None,
    rtol: Annotated[float | None, typer.Option(help="largest relative error (L2) allowed")] = None,
    min_iou: Annotated[float | None, typer.Option("--min-iou", help="smallest mean mask IoU with PyTorch")] = None,
    workspace: Annotated[int | None, typer.Option(help="MiB the engine build may use for tactics")] = None,
    timing_cache: Annotated[Path | None, typer.Option("--timing-cache", help="TensorRT timing cache to use and keep")] = None,
    builder_level: Annotated[int | None, typer.Option("--builder-optimization-level", help="0 to 5")] = None,
    layout: Annotated[str, typer.Option(help="bundle; diffusers: the few-step reference, for optimum")] = "bundle",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check the arguments, say what would be done")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
) -> None:  # fmt: skip
    """Export a trained checkpoint to a verified ONNX bundle."""
    request = Request(precision, format, target, imgsz, batch, prompts, min_shapes, opt_shapes, max_shapes, calibration,
                      auto_islands, islands, atol, rtol, min_iou, workspace, timing_cache, builder_level, layout)  # fmt: skip
    request.check()
    if layout == "diffusers":
        _few_step(request, model, output, dry_run, as_json)
        return
    if format != "onnx":
        from digseg_export.to_tensorrt import require

        require()
    from digseg_export.publish import default_output, export_bundle

    if dry_run:
        _dry_run(request, model, output or default_output(model, precision), as_json)
        return
    console = Console(stderr=True)
    with console.status("starting") as status:
        done = export_bundle(model, precision, output, request.limits(), status.update, request.options())
        engines = _engines(request, done.folder, status.update) if format != "onnx" else []
    if as_json:
        body = {**asdict(done), "folder": str(done.folder), "engines": [str(path) for path in engines]}
        print(json.dumps(body, indent=2))
        return
    _print(Console(), done)
    for path in engines:
        print(f"engine {path}")


def _few_step(request: Request, model: Path | None, output: Path | None, dry_run: bool, as_json: bool) -> None:
    """Export the reference in diffusers' folder layout."""
    from digseg_export.few_step import MARKER, STAGES, check_few_step, export_few_step
    from digseg_export.publish import default_output

    folder = output or default_output(model, f"diffusers-{request.precision}")
    check_few_step(model, request.precision, folder)
    if dry_run:
        plan = {"output": str(folder), "precision": request.precision, "layout": "diffusers",
                "files": [*(spec.file for spec in STAGES.values()), MARKER], "limits": vars(request.limits())}  # fmt: skip
        _say_plan(plan, as_json)
        return
    console = Console(stderr=True)
    with console.status("starting") as status:
        done = export_few_step(model, request.precision, folder, request.limits(), status.update)
    if as_json:
        print(json.dumps({**asdict(done), "folder": str(done.folder)}, indent=2))
        return
    _print_checks(Console(), done)
    Console().print(f"{request.precision} reference written to {done.folder} in {sum(done.seconds.values()):.1f} s")


def _engines(request: Request, folder: Path, progress: Any) -> list[Path]:
    from digseg_export.to_tensorrt import BuildOptions, build_engines, check_golden

    options = BuildOptions(request.workspace or 2048, request.builder_level or 3, request.timing_cache)
    paths = build_engines(folder, options, progress)
    check_golden(folder, paths)
    return paths


def _dry_run(request: Request, model: Path | None, output: Path, as_json: bool) -> None:
    from digseg_engine.bundle import check_target
    from digseg_engine.model.config import DigsegConfig
    from digseg_engine.model.pretrained import BUNDLED
    from digseg_export.calibration import check_folder
    from digseg_export.shelf import check_size

    check_target(output)
    config = DigsegConfig.load(model or BUNDLED)
    if request.calibration:
        check_folder(request.calibration)
    check_size(model or BUNDLED, request.precision)
    _say_plan({"model": config.name, **request.plan(output)}, as_json)


def _say_plan(plan: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(plan, indent=2))
        return
    for name, value in plan.items():
        print(f"{name}: {', '.join(value) if isinstance(value, list) else value}")
    print("nothing was written (--dry-run)")


def _print_checks(console: Console, done: Any) -> None:
    """The verification table, its limits, and the size of every file."""
    table = Table(title=Text(f"verified against PyTorch float32: {done.folder}"), title_justify="left")
    for column in ("stage", "graph", "max error", "mean error", "relative", "mask IoU", "labels", "pairs"):
        table.add_column(column, justify="left" if column in ("stage", "graph") else "right")
    for check in done.checks:
        iou, same = ("" if v is None else f"{v:.5f}" for v in (check.iou, check.label_agreement))
        numbers = (f"{v:.2e}" for v in (check.max_error, check.mean_error, check.relative))
        table.add_row(check.stage, check.graph, *numbers, iou, same, str(check.pairs or ""))
    console.print(table)
    console.print(f"limits: relative <= {done.limits.relative:g}, mean mask IoU >= {done.limits.iou:g}; all passed"
                  " (PyTorch autocast is a yardstick, held to no limit)")  # fmt: skip
    for name, size in done.sizes.items():
        console.print(f"  {size / 1e6:8.2f} MB  {name}", highlight=False)


def _print(console: Console, done: Any) -> None:
    _print_checks(console, done)
    for file, words in done.policy["graphs"].items():
        console.print(Text(f"  {file}: {_policy_line(words)}"))
    total = sum(done.seconds.values())
    steps = ", ".join(f"{name} {seconds:.1f}" for name, seconds in done.seconds.items())
    console.print(
        f"{done.precision} bundle written to {done.folder} in {total:.1f} s ({steps})", highlight=False, markup=False
    )


def _policy_line(words: dict[str, Any]) -> str:
    if "left_out" in words:
        return f"{words['quantised']} layers in {words['name']}, {len(words['left_out'])} left in float32"
    count = sum(kind["count"] for kind in words["islands"].values())
    return f"{count} float32 islands, {len(words['nodes'])} of them single nodes"


def main() -> None:
    """Entry point of `digseg-export`."""
    guarded(app, "digseg-export")
