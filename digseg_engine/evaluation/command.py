"""The `digseg eval` command; what it needs is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    model: Annotated[
        Path | None, typer.Option(help="checkpoint or bundle directory [default: the bundled model]")
    ] = None,
    data: Annotated[str, typer.Option(help="scenes, scenes:DOMAIN,... or a folder of labelled pictures")] = "scenes",
    layout: Annotated[str | None, typer.Option(help="layout of the folder [default: recognised]")] = None,
    split: Annotated[str | None, typer.Option(help="split of the folder [default: its validation split]")] = None,
    count: Annotated[int, typer.Option(help="test scenes per domain; of a folder, at most so many pictures")] = 100,
    size: Annotated[int | None, typer.Option(help="working size in pixels [default: the model's own]")] = None,
    reference_steps: Annotated[
        int, typer.Option(help="score the reference with this many steps instead of the student")
    ] = 0,
    report: Annotated[Path | None, typer.Option(help="write all figures to this .json, with .csv and .png")] = None,
) -> None:
    """Score a model on the fixed test scenes or on labelled pictures: IoU, Dice, boundary IoU, false alarms."""
    from digseg_engine.evaluation.score import score_model

    score_model(model, data, count, size, reference_steps, report, layout, split)
