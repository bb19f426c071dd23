"""`digseg distill`: a reference to few steps and to the one-pass student."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from digseg_engine.commands.declare import Command, Option
from digseg_engine.commands.train import DATA, LORA, RUN, adjusted, check_data, folder_changes, need_data, watching
from digseg_engine.errors import UsageError
from digseg_engine.model.folder import find_start


def run(
    model: str, recipe: str | None, data: list[str], layout: str | None, split: str | None, cached_crops: int | None,
    echo: int | None, balance: float | None, augment: str | None, shard_window: int | None, shard_cache: float | None,
    workers: int | None, readers: Any, output: Path, teacher_steps: int | None, steps: str | None, lora: int | None,
    changes: list[str], scale: float, seed: int | None, gradient_checkpointing: bool, tensorboard: bool, wandb: bool,
    validate_every: int | None, early_stop: int | None, resume: bool, override: bool,
) -> None:  # fmt: skip
    if steps is not None and not all(part.strip().isdigit() for part in steps.split(",")):
        raise UsageError(f"--steps must be whole numbers separated by commas, such as 1,2,4, got {steps!r}")
    data = data or need_data(model, f"distill {model}")
    check_data(*data)
    from digseg_engine.training.recipe_files import check_kind, distill_recipe, read_recipe, settings_of

    chosen = read_recipe(recipe or distill_recipe(find_start(model)))
    check_kind(chosen, "reference")
    folder = folder_changes(data, layout, split, cached_crops, echo, balance, augment, workers, readers, shard_window,
                            shard_cache)  # fmt: skip
    from digseg_engine.training.recipes.distill import DistillConfig, distill

    grid = None if steps is None else tuple(int(part) for part in steps.split(","))
    settings = settings_of(chosen, DistillConfig)
    given: dict[str, Any] = {"seed": seed, "teacher_steps": teacher_steps, "grid": grid}
    settings = replace(settings, folder=replace(settings.folder, **folder),
                       **{name: value for name, value in given.items() if value is not None})  # fmt: skip
    watch = watching(tensorboard, wandb, validate_every, early_stop)
    settings = adjusted(settings, scale, watch, changes, gradient_checkpointing, lora)
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
        Option("--recipe", "for how long and how fast: distill-tiny, distill-sd or a TOML file", shown="by the model's size",
               metavar="NAME|FILE"),
        *DATA,
        Option("--output -o", "folder for logs, curves and the checkpoint", kind=Path, default=Path("runs/distilled"),
               metavar="FOLDER"),
        Option("--teacher-steps", "sampling steps of the teacher", kind=int, shown="the recipe's", at_least=1),
        Option("--steps", "sampling steps to learn, comma-separated", shown="the recipe's", metavar="N,N,..."),
        LORA,
        *RUN,
    ),
    examples=("digseg distill runs/mine/checkpoint --data mydata -o runs/distilled",),
)  # fmt: skip
