"""`digseg train`: from nothing on generated scenes, or from pretrained weights on scenes or own pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from digseg_engine.commands.declare import Command, Option
from digseg_engine.errors import UsageError
from digseg_engine.model.folder import check_start

Settings = TypeVar("Settings")
DATA = (
    Option("--data", "scenes, scenes:DOMAIN,... or labelled pictures, a folder or shards (docs/data.md), =WEIGHT behind it; "
           "repeatable: a mixture", default=("scenes",), shown="scenes", metavar="DATA", many=True),
    Option("--layout", "layout of the folder, if it is the only one", shown="recognised", metavar="NAME", only_with=("--data",)),
    Option("--split", "split of the folders to train on", default="train", metavar="NAME", only_with=("--data",)),
    Option("--cached-crops", "of a folder: fixed crops per picture with kept latents", kind=int, default=0, at_least=0,
           shown="new crops for ever", only_with=("--data",)),
    Option("--echo", "of a folder: crops of a picture each time it is decoded", kind=int, at_least=1,
           shown="4 in the full recipe without kept crops, else 1", only_with=("--data",)),
    Option("--balance", "of a folder: draw pictures more often whose classes are in less than this share of all",
           kind=float, default=0.0, at_least=0, at_most=1, shown="all alike", only_with=("--data",)),
    Option("--augment", "of a folder: change colour, scale, rotation, blur of pictures; some of them, comma-separated",
           metavar="KIND,...", default="", shown="none", only_with=("--data",)),
    Option("--shard-window", "of shards: draw pictures from so many of them at a time, 0 from all", kind=int, at_least=0,
           shown="4 of remote ones, else 0", metavar="N", only_with=("--data",)),
    Option("--shard-cache", "of remote shards: GB of copies kept on this machine, 0 for none", kind=float, at_least=0,
           shown="20", metavar="GB", only_with=("--data",)),
    Option("--workers", "of a folder: how many read pictures ahead", kind=int, default=2, at_least=0,
           only_with=("--data",)),
    Option("--readers", "of a folder: what the workers are", choices=("threads", "processes"), default="threads",
           only_with=("--workers",)),
)  # fmt: skip
FULL_ECHO = 4  # of long runs, which see every picture many times anyway
RUN = (
    Option(
        "--set",
        "change a setting, as student.steps=500; repeatable",
        metavar="STAGE.NAME=VALUE",
        many=True,
        into="changes",
    ),
    Option("--scale", "multiply steps and scenes, for a trial run", kind=float, default=1.0, at_least=0.0001),
    Option("--seed", "random seed", kind=int, default=0),
    Option(
        "--gradient-checkpointing",
        "compute activations twice instead of keeping them: less memory, one more forward pass",
        kind=bool,
        default=False,
    ),
    Option("--tensorboard", "also write event files for TensorBoard", kind=bool, default=False),
    Option("--wandb", "also log to Weights & Biases", kind=bool, default=False),
    Option(
        "--validate-every",
        "steps between two validations on held-out pictures; the best weights are kept; 0: none",
        kind=int,
        at_least=0,
        shown="50 in the quick recipe on folders with a validation split, else 0",
    ),
    Option(
        "--early-stop",
        "end a stage after so many validations that were not better",
        kind=int,
        at_least=1,
        metavar="PATIENCE",
        shown="never",
    ),
    Option("--resume", "continue the run in the output folder", kind=bool, default=False),
    Option(
        "--override",
        "go on with other settings than the run began with",
        kind=bool,
        default=False,
        only_with=("--resume",),
    ),
)


def run(
    config: str, init: str | None, data: list[str], layout: str | None, split: str, cached_crops: int, echo: int | None,
    balance: float, augment: str, shard_window: int | None, shard_cache: float | None, workers: int, readers: Any,
    output: Path | None, recipe: Any, size: int | None, slot: Any,
    autoencoder: str | None, student_only: bool, detail_blocks: int | None, changes: list[str], scale: float, seed: int,
    gradient_checkpointing: bool, tensorboard: bool, wandb: bool, validate_every: int | None, early_stop: int | None,
    resume: bool, override: bool, dry_run: bool, memory: float | None, step_seconds: float | None,
) -> None:  # fmt: skip
    from digseg_engine.data.shares import parse_shares
    from digseg_engine.worlds.scenes import is_scenes

    strange = [share.data for share in parse_shares(data) if not is_scenes(share.data)]
    if init is None and strange:
        raise UsageError(f"training from nothing needs scenes, got --data {strange[0]}; for own pictures start from "
                         "pretrained weights with --init")  # fmt: skip
    if init is None and len(data) > 1:
        raise UsageError("training from nothing takes one --data, such as scenes:objects,crops; mixtures need --init")
    check_data(*data)
    if init is not None:
        check_start(init)
    folder = folder_options(data, layout, split, cached_crops, echo, balance, augment, workers, readers, shard_window,
                            shard_cache)  # fmt: skip
    output = output or Path("runs") / (config if init is None else Path(init).resolve().name)
    from digseg_engine.training.recipes.finetune import finetune, recipe_of, settings_of
    from digseg_engine.training.recipes.tiny import TrainConfig
    from digseg_engine.training.recipes.tiny import train as from_nothing
    from digseg_engine.training.recipes.validating import validated_by_default

    watch = watching(tensorboard, wandb, validate_every, early_stop)
    if init is None:
        settings = adjusted(TrainConfig(seed=seed), scale, watch, changes, gradient_checkpointing)
        written = from_nothing(config, output, settings, resume, data[0], override)
    else:
        given: Any = data[0] if len(data) == 1 else data
        chosen = recipe_of(init, recipe, student_only)
        alone = student_only or chosen == "quick"
        if echo is None and chosen == "full" and not cached_crops:
            folder = replace(folder, echo=FULL_ECHO)
        refuse_idle(changes, alone)
        recipe_settings = settings_of(chosen, seed=seed, size=size, folder=folder)
        if chosen == "quick":
            recipe_settings = validated_by_default(recipe_settings, given, folder)
        tuned = adjusted(recipe_settings, scale, watch, changes, gradient_checkpointing)
        if dry_run:
            return show_plan(init, tuned, given, memory, step_seconds, slot, autoencoder, alone)
        written = finetune(init, output, tuned, resume, given, slot, autoencoder, alone, detail_blocks, override)
    print(f"checkpoint written to {written}; export it with: digseg-export {written}")


def refuse_idle(changes: list[str], student_alone: bool) -> None:
    """Raises UsageError for a change of a stage that the run leaves out."""
    idle = [change for change in changes if student_alone and change.startswith(("reference.", "one_step."))]
    if idle:
        raise UsageError(
            f"--set {idle[0]} changes a stage that this run leaves out; add --recipe full, or leave it out"
        )


def check_data(*data: str) -> None:
    """Raises UsageError for data that are neither scenes, a folder nor shards, before anything is imported or written."""
    from digseg_engine.data.shards import is_data
    from digseg_engine.data.shares import parse_shares
    from digseg_engine.worlds.scenes import is_scenes

    for share in parse_shares(data):
        if not is_scenes(share.data) and not is_data(share.data):
            raise UsageError(f"--data {share.data} is neither scenes nor a folder; expected scenes, scenes:DOMAIN,..., a "
                             "folder of labelled pictures or shards (docs/data.md)")  # fmt: skip


def show_plan(
    init: str, settings: Any, data: Any, memory: float | None, step_seconds: float | None, slot: Any,
    autoencoder: str | None, alone: bool,
) -> None:  # fmt: skip
    """Print what a run would need, and where it does not fit what to change."""
    from digseg_engine.training.recipes.finetune import plan_finetune
    from digseg_engine.training.thrift import resolve_precision

    precision = "bf16" if memory is not None else resolve_precision("auto")  # a limit speaks of a GPU
    limit = None if memory is None else memory * 1e9
    plans, pictures = plan_finetune(init, settings, data, limit, slot, autoencoder, alone, precision)
    print_plan(plans, pictures, limit, step_seconds, precision)


def print_plan(
    plans: list[Any], pictures: int | None, limit: float | None, step_seconds: float | None, precision: str
) -> None:
    from rich.console import Console
    from rich.table import Table

    from digseg_engine.training.planner import said, table

    numeric = "bf16 mixed precision" if precision == "bf16" else "float32"
    shown = Table("", *(each.name for each in plans), title=f"what the run needs, {numeric}; nothing was begun",
                  title_justify="left")  # fmt: skip
    for row in table(plans, pictures, step_seconds):
        shown.add_row(*row)
    Console().print(shown)
    for line in said(plans, limit) if limit is not None else []:
        print(line)
    print("counted on tensors without contents; a GPU needs 1 to 2 GB more for its context, workspaces and fragments")


def watching(tensorboard: bool, wandb: bool, validate_every: int | None, early_stop: int | None) -> dict[str, Any]:
    """What was asked for of the settings by which a run is watched."""
    asked = {"tensorboard": tensorboard, "wandb": wandb, "validate_every": validate_every, "early_stop": early_stop}
    return {name: value for name, value in asked.items() if value is not None and value is not False}


def adjusted(
    settings: Settings, scale: float, watch: dict[str, Any], changes: list[str], gradient_checkpointing: bool = False
) -> Settings:
    """The settings as the command line changes them; watch: of every stage, not scaled (see `watching`)."""
    from digseg_engine.training.run import in_every_stage, scaled, stages_of, with_settings

    settings = in_every_stage(settings, gradient_checkpointing=True) if gradient_checkpointing else settings
    settings = with_settings(settings, changes)
    settings = settings if scale == 1 else scaled(settings, scale)
    settings = in_every_stage(settings, **watch)
    patient = [stage for stage in stages_of(settings).values() if stage.early_stop]
    if patient and not any(stage.validate_every for stage in patient):
        raise UsageError("--early-stop counts validations, and this run has none; add --validate-every N")
    return settings


def folder_options(
    data: list[str], layout: str | None, split: str, cached_crops: int, echo: int | None, balance: float, augment: str,
    workers: int, readers: Any, shard_window: int | None = None, shard_cache: float | None = None,
) -> Any:  # fmt: skip
    """The `FolderOptions` of a run. Raises UsageError when options of a folder are given with scenes."""
    from digseg_engine.data.shards import is_shards
    from digseg_engine.data.shares import parse_shares
    from digseg_engine.worlds.scenes import is_scenes

    folders = [share.data for share in parse_shares(data) if not is_scenes(share.data)]
    if len(folders) > 1 and layout is not None:
        raise UsageError(f"--layout {layout} describes one folder, and there are {len(folders)}; leave it out, layouts are "
                         "recognised")  # fmt: skip
    sharded = [folder for folder in folders if is_shards(folder)]
    if not sharded and (shard_window is not None or shard_cache is not None):
        raise UsageError("--shard-window and --shard-cache describe shards, and --data names none; leave them out, or write "
                         "shards: digseg data FOLDER --pack OUT")  # fmt: skip
    if not folders and (layout, split, cached_crops, echo, balance, augment) != (None, "train", 0, None, 0, ""):
        raise UsageError("--layout, --split, --cached-crops, --echo, --balance and --augment describe a folder of labelled "
                         f"pictures; --data is {', '.join(data)} here")  # fmt: skip
    from digseg_engine.data.augmentation import check_installed, parse_kinds
    from digseg_engine.data.batches import FolderOptions

    kinds = parse_kinds(augment)
    check_installed(kinds)
    return FolderOptions(
        layout, split, cached_crops, workers, readers, echo or 1, balance, kinds, shard_window, shard_cache
    )


COMMAND = Command(
    name="train",
    summary="Train a model from nothing on generated scenes, or from pretrained weights on scenes or your own pictures.",
    run=run,
    extras=("train",),
    options=(
        Option("--config", "model preset to train from nothing: tiny", default="tiny", metavar="NAME",
               not_with=("--init",)),
        Option("--init", "start from digseg-tiny, a DiGSeg or Stable Diffusion 1.x/2.x directory, or a hub id",
               metavar="MODEL"),
        Option("--recipe", "quick: the student alone, 200 steps; full: all stages", choices=("quick", "full"),
               shown="quick from DiGSeg checkpoints, full from Stable Diffusion", only_with=("--init",),
               not_with=("--student-only",)),
        *DATA,
        Option("--output -o", "folder for logs, curves and the checkpoint", kind=Path, shown="runs/NAME of the start",
               metavar="FOLDER"),
        Option("--size --imgsz", "training pictures' side in pixels", kind=int, shown="the model's own",
               only_with=("--init",)),
        Option("--slot", "how masks enter the first convolution", default="zero", choices=("zero", "noisy"),
               only_with=("--init",)),
        Option("--autoencoder", "directory or hub id of a tiny autoencoder to use instead", metavar="MODEL",
               only_with=("--init",)),
        Option("--student-only", "the full recipe, but leave a trained reference as it is", kind=bool, default=False,
               only_with=("--init",)),
        Option("--detail-blocks", "deepen the student's image stem to this many residual blocks", kind=int, at_least=0,
               only_with=("--init",)),
        *RUN,
        Option("--dry-run", "print steps, epochs and memory of every stage, and begin nothing", kind=bool, default=False,
               only_with=("--init",)),
        Option("--memory", "with --dry-run: GB that the device has; says what to change so that every stage fits",
               kind=float, only_with=("--dry-run",)),
        Option("--step-seconds", "with --dry-run: seconds that a step takes, to say the time of every stage", kind=float,
               only_with=("--dry-run",)),
    ),
    examples=(
        "digseg train --init digseg-tiny --data mydata -o runs/mine",
        "digseg train --config tiny -o runs/tiny",
        "digseg train --config tiny -o runs/tiny --resume",
    ),
)  # fmt: skip
