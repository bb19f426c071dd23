"""`digseg distill`: a reference to few steps and to the one-pass student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from digseg_engine.commands.declare import Command, Option
from digseg_engine.commands.train import DATA, RUN, adjusted, check_data, folder_options, watching
from digseg_engine.errors import UsageError
from digseg_engine.model.folder import check_start


def run(
    model: str, data: list[str], layout: str | None, split: str, cached_crops: int, echo: int | None, balance: float,
    augment: str, shard_window: int | None, shard_cache: float | None, workers: int, readers: Any, output: Path,
    teacher_steps: int, steps: str, changes: list[str], scale: float, seed: int, gradient_checkpointing: bool,
    tensorboard: bool, wandb: bool, validate_every: int | None, early_stop: int | None, resume: bool, override: bool,
) -> None:  # fmt: skip
    if not all(part.strip().isdigit() for part in steps.split(",")):
        raise UsageError(f"--steps must be whole numbers separated by commas, such as 1,2,4, got {steps!r}")
    check_data(*data)
    check_start(model)
    folder = folder_options(data, layout, split, cached_crops, echo, balance, augment, workers, readers, shard_window,
                            shard_cache)  # fmt: skip
    from digseg_engine.training.recipes.distill import DistillConfig, distill

    grid = tuple(int(part) for part in steps.split(","))
    settings = DistillConfig(seed=seed, teacher_steps=teacher_steps, grid=grid, folder=folder)
    watch = watching(tensorboard, wandb, validate_every, early_stop)
    settings = adjusted(settings, scale, watch, changes, gradient_checkpointing)
    written = distill(model, output, settings, resume, data[0] if len(data) == 1 else data, override)
    print(f"checkpoint written to {written}; quality and cost per number of steps in {written / 'distill.png'}")


COMMAND = Command(
    name="distill",
    summary="Distil a reference to few steps and to the one-pass student; reports quality and cost at every number of "
    "steps.",
    run=run,
    extras=("train",),
    options=(
        Option("model", "DiGSeg checkpoint whose reference is the teacher", needed=True),
        *DATA,
        Option("--output -o", "folder for logs, curves and the checkpoint", kind=Path, default=Path("runs/distilled"),
               metavar="FOLDER"),
        Option("--teacher-steps", "sampling steps of the teacher", kind=int, default=8, at_least=1),
        Option("--steps", "sampling steps to learn, comma-separated", default="1,2,4", metavar="N,N,..."),
        *RUN,
    ),
    examples=("digseg distill runs/mine/checkpoint -o runs/distilled",),
)  # fmt: skip
