"""`digseg train`: from nothing on generated scenes, or from pretrained weights on scenes or own pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from digseg_engine.commands.declare import Command, Option
from digseg_engine.console import note
from digseg_engine.errors import UsageError
from digseg_engine.model.folder import find_start

Settings = TypeVar("Settings")
DATA = (
    Option("--data", "scenes, scenes:DOMAIN,... or labelled pictures, a folder or shards (docs/data.md), =WEIGHT behind it; "
           "repeatable: a mixture", shown="of --config: scenes", metavar="DATA", many=True),
    Option("--layout", "layout of the folder, if it is the only one", shown="recognised", metavar="NAME", only_with=("--data",)),
    Option("--split", "split of the folders to train on", shown="train", metavar="NAME", only_with=("--data",)),
    Option("--cached-crops", "of a folder: fixed crops per picture with kept latents", kind=int, at_least=0,
           shown="new crops for ever", only_with=("--data",)),
    Option("--echo", "of a folder: crops of a picture each time it is decoded", kind=int, at_least=1,
           shown="the recipe's; 1 with kept crops", only_with=("--data",)),
    Option("--balance", "of a folder: draw pictures more often whose classes are in less than this share of all",
           kind=float, at_least=0, at_most=1, shown="all alike", only_with=("--data",)),
    Option("--augment", "of a folder: change colour, scale, rotation, blur of pictures; some of them, comma-separated",
           metavar="KIND,...", shown="none", only_with=("--data",)),
    Option("--shard-window", "of shards: draw pictures from so many of them at a time, 0 from all", kind=int, at_least=0,
           shown="4 of remote ones, else 0", metavar="N", only_with=("--data",)),
    Option("--shard-cache", "of remote shards: GB of copies kept on this machine, 0 for none", kind=float, at_least=0,
           shown="20", metavar="GB", only_with=("--data",)),
    Option("--workers", "of a folder: how many read pictures ahead", kind=int, shown="2", at_least=0,
           only_with=("--data",)),
    Option("--readers", "of a folder: what the workers are", choices=("threads", "processes"), shown="threads",
           only_with=("--workers",)),
)  # fmt: skip
LORA = Option("--lora", "train adapters of this rank in every stage's U-Net instead of all its weights; merged at the end",
              kind=int, at_least=1, shown="all weights", metavar="RANK")  # fmt: skip
RUN = (
    Option(
        "--set",
        "change a setting, as student.steps=500; repeatable",
        metavar="STAGE.NAME=VALUE",
        many=True,
        into="changes",
    ),
    Option("--scale", "multiply steps and scenes, for a trial run", kind=float, default=1.0, at_least=0.0001),
    Option("--seed", "random seed", kind=int, shown="the recipe's, 0"),
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
        shown="the recipe's, on folders with a validation split; else 0",
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
    config: str, init: str | None, recipe: str | None, list_recipes: bool, data: list[str], layout: str | None,
    split: str | None, cached_crops: int | None, echo: int | None, balance: float | None, augment: str | None,
    shard_window: int | None, shard_cache: float | None, workers: int | None, readers: Any, output: Path | None,
    size: int | None, slot: Any, autoencoder: str | None, student_only: bool, presence_only: bool, detail_blocks: int | None,
    lora: int | None, changes: list[str], scale: float, seed: int | None, gradient_checkpointing: bool,
    tensorboard: bool, wandb: bool, validate_every: int | None, early_stop: int | None, resume: bool, override: bool,
    dry_run: bool, memory: float | None, step_seconds: float | None,
) -> None:  # fmt: skip
    from digseg_engine.data.shares import parse_shares
    from digseg_engine.worlds.scenes import is_scenes

    if list_recipes:
        return print_recipes()
    data = data or (["scenes"] if init is None else need_data(init, f"train --init {init}"))
    strange = [share.data for share in parse_shares(data) if not is_scenes(share.data)]
    if init is None and strange:
        raise UsageError(f"training from nothing needs scenes, got --data {strange[0]}; for own pictures start from "
                         "pretrained weights with --init")  # fmt: skip
    if init is None and len(data) > 1:
        raise UsageError("training from nothing takes one --data, such as scenes:objects,crops; mixtures need --init")
    check_data(*data)
    chosen = choose_recipe(recipe, init, student_only)
    folder = folder_changes(data, layout, split, cached_crops, echo, balance, augment, workers, readers, shard_window,
                            shard_cache)  # fmt: skip
    output = output or Path("runs") / (config if init is None else Path(init).resolve().name)
    from digseg_engine.training.recipe_files import settings_of
    from digseg_engine.training.recipes.finetune import FinetuneConfig, finetune
    from digseg_engine.training.recipes.tiny import TrainConfig
    from digseg_engine.training.recipes.tiny import train as from_nothing
    from digseg_engine.training.recipes.validating import validated_where_held_out

    watch = watching(tensorboard, wandb, validate_every, early_stop)
    given: dict[str, Any] = {name: value for name, value in (("seed", seed), ("size", size)) if value is not None}
    if init is None:
        settings = replace(settings_of(chosen, TrainConfig), **given)
        settings = adjusted(settings, scale, watch, changes, gradient_checkpointing)
        written = from_nothing(config, output, settings, resume, data[0], override)
    else:
        shares: Any = data[0] if len(data) == 1 else data
        tuned = replace(settings_of(chosen, FinetuneConfig), **given)
        tuned = replace(tuned, reference=None, one_step=None) if student_only or presence_only else tuned
        tuned = replace(tuned, student=None) if presence_only else tuned
        refuse_idle(changes, tuned)
        tuned = replace(tuned, folder=replace(tuned.folder, **folder))
        tuned = validated_where_held_out(tuned, shares)
        tuned = adjusted(tuned, scale, watch, changes, gradient_checkpointing, lora)
        if dry_run:
            return show_plan(init, tuned, shares, memory, step_seconds, slot, autoencoder)
        written = finetune(init, output, tuned, resume, shares, slot, autoencoder, detail_blocks, override)
    print(f"checkpoint written to {written}; export it with: digseg-export {written}")


def need_data(start: str, command: str) -> list[str]:
    """Raises UsageError: what a trained model learns next is never guessed, it would be hours of work on the wrong thing.
    CheckpointError where the start is no model at all."""
    find_start(start)
    raise UsageError(f"--data is missing; expected what to train on: digseg {command} --data FOLDER for labelled pictures, or "
                     "--data scenes for the painted scenes that the bundled model was made with")  # fmt: skip


def choose_recipe(asked: str | None, init: str | None, student_only: bool = False) -> Any:
    """The `Recipe` asked for, else the one for the start. Raises UsageError when it is unknown or for another start."""
    from digseg_engine.training.recipe_files import check_kind, default_recipe, former_name, read_recipe

    start = None if init is None else find_start(init)
    name = asked or default_recipe(start, student_only)
    if (now := former_name(name, start)) is not None:
        note("digseg", f"--recipe {name} is called {now} now; the old name goes with the next minor release")
        name = now
    chosen = read_recipe(name)
    check_kind(chosen, "nothing" if init is None else "pretrained")
    return chosen


def print_recipes() -> None:
    """The bundled recipes of this command, one a line."""
    from digseg_engine.training.recipe_files import bundled_recipes, read_recipe

    recipes = [recipe for recipe in map(read_recipe, bundled_recipes()) if recipe.start != "reference"]
    width = max(len(recipe.name) for recipe in recipes)
    for recipe in recipes:
        print(f"{recipe.name:<{width}}  {recipe.about}")


def refuse_idle(changes: list[str], settings: Any) -> None:
    """Raises UsageError for a change of a stage that the run leaves out."""
    left_out = tuple(
        f"{name}." for name in ("reference", "one_step", "student", "presence") if getattr(settings, name) is None
    )
    idle = [change for change in changes if left_out and change.startswith(left_out)]
    if idle:
        raise UsageError(f"--set {idle[0]} changes a stage that this run leaves out; choose a recipe that has it, such as "
                         "--recipe finetune-all, or leave it out")  # fmt: skip


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
    autoencoder: str | None,
) -> None:  # fmt: skip
    """Print what a run would need, and where it does not fit what to change."""
    from digseg_engine.training.recipes.finetune import plan_finetune
    from digseg_engine.training.thrift import resolve_precision

    precision = "bf16" if memory is not None else resolve_precision("auto")  # a limit speaks of a GPU
    limit = None if memory is None else memory * 1e9
    plans, pictures = plan_finetune(init, settings, data, limit, slot, autoencoder, precision)
    print(f"recipe {settings.recipe}")
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
    print(
        "counted on tensors without contents; a GPU needs 1 to 2 GB more for its context, workspaces and fragments;\n"
        "disk: what the stage's folder takes at the most"
    )


def watching(tensorboard: bool, wandb: bool, validate_every: int | None, early_stop: int | None) -> dict[str, Any]:
    """What was asked for of the settings by which a run is watched."""
    asked = {"tensorboard": tensorboard, "wandb": wandb, "validate_every": validate_every, "early_stop": early_stop}
    return {name: value for name, value in asked.items() if value is not None and value is not False}


def adjusted(
    settings: Settings, scale: float, watch: dict[str, Any], changes: list[str], gradient_checkpointing: bool = False,
    lora: int | None = None,
) -> Settings:  # fmt: skip
    """The settings as the command line changes them; watch: of every stage, not scaled (see `watching`)."""
    from digseg_engine.training.lora import check_rank
    from digseg_engine.training.run import in_every_stage, scaled, stages_of, with_settings

    settings = settings if lora is None else in_every_stage(settings, lora=lora)
    settings = in_every_stage(settings, gradient_checkpointing=True) if gradient_checkpointing else settings
    settings = with_settings(settings, changes)
    settings = settings if scale == 1 else scaled(settings, scale)
    settings = in_every_stage(settings, **watch)
    for stage in stages_of(settings).values():
        if stage.lora:
            check_rank(stage.lora)
    patient = [stage for stage in stages_of(settings).values() if stage.early_stop]
    if patient and not any(stage.validate_every for stage in patient):
        raise UsageError("--early-stop counts validations, and this run has none; add --validate-every N")
    return settings


def folder_changes(
    data: list[str], layout: str | None, split: str | None, cached_crops: int | None, echo: int | None,
    balance: float | None, augment: str | None, workers: int | None, readers: Any, shard_window: int | None = None,
    shard_cache: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What the command line changes of a recipe's `FolderOptions`. Raises UsageError when options of a folder are given with
    scenes."""
    from digseg_engine.data.augmentation import check_installed, parse_kinds
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
    if not folders and any(value is not None for value in (layout, split, cached_crops, echo, balance, augment)):
        raise UsageError("--layout, --split, --cached-crops, --echo, --balance and --augment describe a folder of labelled "
                         f"pictures; --data is {', '.join(data)} here")  # fmt: skip
    kinds = None if augment is None else parse_kinds(augment)
    check_installed(kinds or ())
    if cached_crops and echo is None:
        echo = 1  # kept crops are few already
    given = {"layout": layout, "split": split, "cached_crops": cached_crops, "workers": workers, "readers": readers,
             "echo": echo, "balance": balance, "augment": kinds, "shard_window": shard_window,
             "shard_cache": shard_cache}  # fmt: skip
    return {name: value for name, value in given.items() if value is not None}


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
        Option("--recipe", "what is trained, for how long and how fast: a name of --list-recipes, or a TOML file",
               shown="by the start: finetune-100, sd15, sd21-ade20k or tiny", metavar="NAME|FILE"),
        Option("--list-recipes", "print the names of the recipes, one a line, and end", kind=bool, default=False),
        *DATA,
        Option("--output -o", "folder for logs, curves and the checkpoint", kind=Path, shown="runs/NAME of the start",
               metavar="FOLDER"),
        Option("--size --imgsz", "training pictures' side in pixels", kind=int, shown="the model's own",
               only_with=("--init",)),
        Option("--slot", "how masks enter the first convolution", default="zero", choices=("zero", "noisy"),
               only_with=("--init",)),
        Option("--autoencoder", "directory or hub id of a tiny autoencoder to use instead", metavar="MODEL",
               only_with=("--init",)),
        Option("--student-only", "leave out the recipe's stages of the reference", kind=bool, default=False,
               only_with=("--init",)),
        Option("--presence-only", "train the presence readout alone, added where the model has none; masks stay as they are",
               kind=bool, default=False, only_with=("--init",), not_with=("--student-only", "--detail-blocks", "--lora")),
        Option("--detail-blocks", "deepen the student's image stem to this many residual blocks", kind=int, at_least=0,
               only_with=("--init",)),
        replace(LORA, only_with=("--init",)),
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
        "digseg train --init digseg-tiny --data mydata --recipe mine.toml -o runs/mine",
        "digseg train --config tiny -o runs/tiny",
        "digseg train --config tiny -o runs/tiny --resume",
    ),
)  # fmt: skip
