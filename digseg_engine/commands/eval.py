"""`digseg eval`: score a model."""

from __future__ import annotations

from pathlib import Path

from digseg_engine.commands.declare import Command, Option
from digseg_engine.commands.train import check_data
from digseg_engine.errors import UsageError
from digseg_engine.folders import check_output_file


def run(
    model: Path | None, data: str, layout: str | None, split: str | None, count: int, size: int | None,
    reference_steps: int, report: Path | None, device: str | None,
) -> None:  # fmt: skip
    check_data(data)
    if model is not None and not model.is_dir():
        raise UsageError(f"--model {model} is not a folder; expected a checkpoint or a bundle")
    if report is not None:
        check_output_file(report)
    from digseg_engine.evaluation.score import score_model

    score_model(model, data, count, size, reference_steps, report, layout, split, device)


COMMAND = Command(
    name="eval",
    summary="Score a model on the fixed test scenes or on labelled pictures: IoU, Dice, boundary IoU, false alarms.",
    run=run,
    extras=("train",),
    options=(
        Option("--model", "checkpoint or bundle", kind=Path, shown="the bundled model", metavar="FOLDER"),
        Option("--data", "scenes, scenes:DOMAIN,... or labelled pictures, a folder or shards", default="scenes", metavar="DATA"),
        Option("--layout", "layout of the folder", shown="recognised", metavar="NAME"),
        Option("--split", "split of the folder", shown="its validation split", metavar="NAME"),
        Option("--count", "test scenes per domain; of a folder, at most so many pictures at random", kind=int, default=100,
               at_least=1),
        Option("--size --imgsz", "working size in pixels", kind=int, shown="the model's own"),
        Option("--reference-steps", "score the reference with this many steps instead of the student", kind=int,
               default=0, at_least=0),
        Option("--device", "cpu, cuda or cuda:1", shown="cpu; of a bundle, its backend's", metavar="NAME"),
        Option("--report", "write all figures to this .json, with .csv and .png", kind=Path, metavar="FILE"),
    ),
    examples=("digseg eval --count 20", "digseg eval --model runs/mine/checkpoint --data mydata --report scores.json"),
)  # fmt: skip
