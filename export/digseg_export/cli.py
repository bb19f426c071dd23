"""`digseg-export [MODEL] --precision fp16`: a checkpoint becomes a verified bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from digseg_engine.cli import guarded

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def export(
    model: Annotated[
        Path | None, typer.Argument(help="checkpoint directory; the bundled digseg-tiny when left out")
    ] = None,
    precision: Annotated[str, typer.Option(help="fp32 or fp16")] = "fp16",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="bundle to write [default: MODEL-PRECISION]")
    ] = None,
) -> None:
    """Export a trained checkpoint to a verified ONNX bundle."""
    from digseg_export.publish import export_bundle

    console = Console(stderr=True)
    with console.status("starting") as status:
        done = export_bundle(model, precision, output, progress=lambda step: status.update(step))
    _print(Console(), done)


def _print(console: Console, done: Any) -> None:
    table = Table(title=Text(f"verified against PyTorch float32: {done.folder}"), title_justify="left")
    for column in ("stage", "graph", "max error", "relative", "mask IoU", "pairs"):
        table.add_column(column, justify="left" if column in ("stage", "graph") else "right")
    for check in done.checks:
        iou = "" if check.iou is None else f"{check.iou:.5f}"
        table.add_row(
            check.stage, check.graph, f"{check.max_error:.2e}", f"{check.relative:.2e}", iou, str(check.pairs or "")
        )
    console.print(table)
    console.print(f"limits: relative <= {done.limits.relative:g}, mean mask IoU >= {done.limits.iou:g}; all passed")
    for name, size in done.sizes.items():
        console.print(f"  {size / 1e6:8.2f} MB  {name}", highlight=False)
    total = sum(done.seconds.values())
    steps = ", ".join(f"{name} {seconds:.1f}" for name, seconds in done.seconds.items())
    console.print(
        f"{done.precision} bundle written to {done.folder} in {total:.1f} s ({steps})", highlight=False, markup=False
    )


def main() -> None:
    """Entry point of `digseg-export`."""
    guarded(app, "digseg-export")
