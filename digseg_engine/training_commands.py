"""The `digseg train` and `digseg distill` commands; what they need is imported when they run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

import typer

from digseg_engine.errors import UsageError

Settings = TypeVar("Settings")
Data = Annotated[str, typer.Option(help="scenes, scenes:DOMAIN,... or a folder of labelled pictures (docs/data.md)")]
LayoutName = Annotated[str | None, typer.Option(help="layout of the folder [default: recognised]")]
Split = Annotated[str, typer.Option(help="split of the folder to train on")]
CachedCrops = Annotated[
    int, typer.Option(help="of a folder: fixed crops per picture with kept latents [default: new crops for ever]")
]
Workers = Annotated[int, typer.Option(help="of a folder: threads that read pictures ahead")]
Output = Annotated[Path, typer.Option("--output", "-o", help="folder for logs, curves and the checkpoint")]
Scale = Annotated[float, typer.Option(help="multiply steps and scenes, for a trial run")]
Seed = Annotated[int, typer.Option(help="random seed")]
TensorBoard = Annotated[bool, typer.Option("--tensorboard", help="also write event files for TensorBoard")]
Resume = Annotated[bool, typer.Option(help="continue the run in the output folder")]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="STAGE.NAME=VALUE", help="change a setting, as student.steps=500; repeatable"),
]


def train(
    config: Annotated[str, typer.Option(help="model preset to train from nothing: tiny")] = "tiny",
    init: Annotated[
        str | None, typer.Option(help="start from a Stable Diffusion 1.x/2.x or DiGSeg directory, or a hub id")
    ] = None,
    data: Data = "scenes",
    layout: LayoutName = None,
    split: Split = "train",
    cached_crops: CachedCrops = 0,
    workers: Workers = 2,
    output: Output = Path("runs/tiny"),
    size: Annotated[
        int | None, typer.Option(help="training pictures' side in pixels [default: the model's own]")
    ] = None,
    slot: Annotated[
        str, typer.Option(help="with --init: how masks enter the first convolution: zero or noisy")
    ] = "zero",
    autoencoder: Annotated[
        str | None, typer.Option(help="with --init: directory or hub id of a tiny autoencoder to use instead")
    ] = None,
    student_only: Annotated[bool, typer.Option(help="with --init: leave a trained reference as it is")] = False,
    detail_blocks: Annotated[
        int | None,
        typer.Option(min=0, help="with --init: deepen the student's image stem to this many residual blocks"),
    ] = None,
    changes: Changes = None,
    scale: Scale = 1.0,
    seed: Seed = 0,
    tensorboard: TensorBoard = False,
    resume: Resume = False,
) -> None:
    """Train a model from nothing on generated scenes, or from pretrained weights on scenes or your own pictures."""
    if slot not in ("zero", "noisy"):
        raise UsageError(f"--slot must be zero or noisy, got {slot!r}")
    if init is None:
        only = {"--autoencoder": autoencoder, "--student-only": student_only or None, "--size": size,
                "--detail-blocks": detail_blocks}  # fmt: skip
        for name, given in only.items():
            if given is not None:
                raise UsageError(f"{name} applies to --init only; a model trained from nothing has its preset's own")
        from digseg_engine.worlds.scenes import is_scenes

        if not is_scenes(data):
            raise UsageError(f"training from nothing needs scenes, got --data {data}; for own pictures start from "
                             "pretrained weights with --init")  # fmt: skip
    folder = folder_options(data, layout, split, cached_crops, workers)
    from digseg_engine.training.recipes.finetune import FinetuneConfig, finetune
    from digseg_engine.training.recipes.tiny import TrainConfig
    from digseg_engine.training.recipes.tiny import train as from_nothing

    if init is None:
        written = from_nothing(
            config, output, adjusted(TrainConfig(seed=seed), scale, tensorboard, changes), resume, data
        )
    else:
        tuned = adjusted(FinetuneConfig(seed=seed, size=size, folder=folder), scale, tensorboard, changes)
        kind = cast(Literal["zero", "noisy"], slot)
        written = finetune(init, output, tuned, resume, data, kind, autoencoder, student_only, detail_blocks)
    print(f"checkpoint written to {written}; export it with: digseg-export {written}")


def distill(
    model: Annotated[str, typer.Argument(help="DiGSeg checkpoint whose reference is the teacher")],
    data: Data = "scenes",
    layout: LayoutName = None,
    split: Split = "train",
    cached_crops: CachedCrops = 0,
    workers: Workers = 2,
    output: Output = Path("runs/distilled"),
    teacher_steps: Annotated[int, typer.Option(help="sampling steps of the teacher")] = 8,
    steps: Annotated[str, typer.Option(help="sampling steps to learn, comma-separated")] = "1,2,4",
    changes: Changes = None,
    scale: Scale = 1.0,
    seed: Seed = 0,
    tensorboard: TensorBoard = False,
    resume: Resume = False,
) -> None:
    """Distil a reference to few steps and to the one-pass student; reports quality and cost at every number of steps."""
    from digseg_engine.training.recipes.distill import DistillConfig
    from digseg_engine.training.recipes.distill import distill as run

    if not all(part.strip().isdigit() for part in steps.split(",")):
        raise UsageError(f"--steps must be whole numbers separated by commas, such as 1,2,4, got {steps!r}")
    grid = tuple(int(part) for part in steps.split(","))
    folder = folder_options(data, layout, split, cached_crops, workers)
    settings = DistillConfig(seed=seed, teacher_steps=teacher_steps, grid=grid, folder=folder)
    written = run(model, output, adjusted(settings, scale, tensorboard, changes), resume, data)
    print(f"checkpoint written to {written}; quality and cost per number of steps in {written / 'distill.png'}")


def adjusted(settings: Settings, scale: float, tensorboard: bool, changes: list[str] | None) -> Settings:
    """The settings as the command line changes them."""
    from digseg_engine.training.run import scaled, with_settings, with_tensorboard

    settings = with_settings(settings, changes or [])
    settings = settings if scale == 1 else scaled(settings, scale)
    return with_tensorboard(settings) if tensorboard else settings


def folder_options(data: str, layout: str | None, split: str, cached_crops: int, workers: int) -> Any:
    """The `FolderOptions` of a run. Raises UsageError when options of a folder are given with scenes."""
    from digseg_engine.worlds.scenes import is_scenes

    if is_scenes(data) and (layout, split, cached_crops) != (None, "train", 0):
        raise UsageError("--layout, --split and --cached-crops describe a folder of labelled pictures; "
                         f"--data is {data} here")  # fmt: skip
    from digseg_engine.data.batches import FolderOptions

    return FolderOptions(layout, split, cached_crops, workers)
