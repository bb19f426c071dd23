"""The `digseg data` command: check a folder of labelled pictures before a model is trained or judged on it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from digseg_engine.errors import UsageError


def data(
    folder: Annotated[Path, typer.Argument(help="folder of labelled pictures: own data or a known data set")],
    layout: Annotated[str | None, typer.Option(help="layout of the folder [default: recognised]")] = None,
    split: Annotated[str, typer.Option(help="split to check, or all")] = "all",
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG with labels drawn over pictures")] = Path(
        "data.png"
    ),
    pictures: Annotated[int, typer.Option(help="pictures in the PNG, spread over the data set")] = 12,
) -> int:
    """Check every picture and mask; print pixels and pictures per class; draw labels over pictures."""
    from rich.console import Console
    from rich.progress import Progress

    from digseg_engine.data.datasets import open_dataset
    from digseg_engine.data.survey import class_table, contact_sheet, survey

    if output.suffix.lower() != ".png" or output.is_dir():
        raise UsageError(f"output {output} must be a .png file; choose another with -o")
    if pictures < 1:
        raise UsageError(f"the number of pictures in the PNG must be at least 1, got {pictures}")
    dataset = open_dataset(folder, layout, split, strict=False)
    console = Console()
    with Progress(transient=True) as bar:
        task = bar.add_task("checking", total=len(dataset))
        found = survey(dataset, lambda: bar.advance(task))
    console.print(class_table(dataset, found))
    for problem in found.problems:
        print(f"digseg: error: {' '.join(problem.split())}", file=sys.stderr)
    if found.good:
        output.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(dataset, found.spread(pictures)).save(output)
        print(f"{len(found.good)} of {len(dataset)} pictures are sound; labels drawn in {output}")
    if found.problems:
        print(f"digseg: error: {len(found.problems)} problems in {folder}, all listed above", file=sys.stderr)
    return 2 if found.problems else 0
