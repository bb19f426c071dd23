"""`digseg train --init`: from a Stable Diffusion or DiGSeg directory to a checkpoint, on scenes or own data.

Full recipe: reference A (noisy mask latents), reference B (one step, mask space), student; for Stable Diffusion, a matter of
days on a GPU. Quick recipe, for DiGSeg checkpoints: 200 steps of the student alone, about ten minutes of one CPU core.
The autoencoder and the text encoder stay frozen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from accelerate import PartialState

from digseg_engine.bundle import MANIFEST
from digseg_engine.console import note
from digseg_engine.data.batch import Batches
from digseg_engine.data.batches import FolderOptions, folder_batches
from digseg_engine.data.checks import READ, check_marks
from digseg_engine.data.datasets import open_dataset
from digseg_engine.data.mixtures import MixedBatches
from digseg_engine.data.shards import is_data
from digseg_engine.data.shares import Data, parse_shares
from digseg_engine.data.wordings import typical_tokens
from digseg_engine.errors import CheckpointError, UsageError
from digseg_engine.model.folder import CONFIG
from digseg_engine.model.pretrained import Checkpoint, deepen_stem, load_checkpoint, outline_checkpoint
from digseg_engine.model.reference import Slot
from digseg_engine.model.stable_diffusion import find_directory, load_stable_diffusion, outline_stable_diffusion
from digseg_engine.training.loop import Loss, StageConfig
from digseg_engine.training.objectives.denoising import DenoisingLoss
from digseg_engine.training.objectives.dense import Tutored
from digseg_engine.training.objectives.noise import NoiseKind
from digseg_engine.training.objectives.one_step import OneStepLoss
from digseg_engine.training.objectives.pairs import PairSource
from digseg_engine.training.objectives.student import IMITATE_EVERY, DistillationLoss
from digseg_engine.training.planner import StagePlan, plan
from digseg_engine.training.recipes.summary import print_schedule, print_score, student_score
from digseg_engine.training.recipes.validating import reference_validator, student_validator
from digseg_engine.training.run import Run, freeze, move, stages_of
from digseg_engine.training.thrift import keep_on_device, recomputing
from digseg_engine.worlds.scenes import is_scenes
from digseg_engine.worlds.sources import cache_latents, parse_domains, scene_batches, scene_pools


@dataclass(frozen=True)
class FinetuneConfig:
    """Stage lengths and rates after Marigold and its end-to-end fine-tuning: AdamW, 3e-5, effective batch 32."""

    seed: int = 0
    scenes: int = 4000  # per domain, when trained on scenes
    folder: FolderOptions = FolderOptions()  # when trained on a folder of labelled pictures
    size: int | None = None  # pixels; None: the model's own
    imitate_every: int = IMITATE_EVERY  # the student imitates the reference in every so manieth micro-batch; 0: never
    noise: NoiseKind = "gaussian"  # of the stage `reference`; or "multi-resolution", annealed (Marigold's)
    dense: bool = False  # the student learns dense labels of single words beside the prompts (scenes only)
    reference: StageConfig = StageConfig(20000, 4, 3e-5, warmup=100, accumulate=8, ema=0.999, optimizer="adamw")
    one_step: StageConfig = StageConfig(10000, 2, 3e-5, warmup=100, accumulate=16, ema=0.999, optimizer="adamw")
    student: StageConfig = StageConfig(20000, 4, 1e-4, warmup=100, accumulate=4, ema=0.999, optimizer="adamw")

    def __post_init__(self) -> None:
        if self.noise not in get_args(NoiseKind):
            raise UsageError(f"noise must be one of {', '.join(get_args(NoiseKind))}, got {self.noise!r}")


Recipe = Literal["quick", "full"]


def recipe_of(source: str, recipe: Recipe | None = None, student_only: bool = False) -> Recipe:
    """The recipe for the start `source`: the one asked for, else quick for a DiGSeg checkpoint and full for the others.

    Raises CheckpointError for an unusable start, UsageError for a quick recipe without a trained student.
    """
    trained = (find_start(source) / "digseg.json").is_file()
    if recipe == "quick" and not trained:
        raise UsageError(f"--recipe quick trains the student of a DiGSeg checkpoint; {source} is a Stable Diffusion model, "
                         "which needs --recipe full")  # fmt: skip
    return recipe or ("quick" if trained and not student_only else "full")


def settings_of(recipe: Recipe, **more: Any) -> FinetuneConfig:
    """The settings of a recipe, with `more` of them given."""
    if recipe == "full":
        return FinetuneConfig(**more)
    student = StageConfig(200, 8, 2e-3, prompts=8, warmup=20, ema=0.98)
    return FinetuneConfig(student=student, imitate_every=0, **more)


def find_start(source: str) -> Path:
    """The directory to start from. Raises CheckpointError for an exported bundle, which holds no weights to train."""
    folder = find_directory(source)
    if (folder / MANIFEST).is_file() and not (folder / "digseg.json").is_file():
        raise CheckpointError(f"{source} is an exported bundle, which cannot be trained; expected the checkpoint it was made "
                              "from, such as digseg-tiny or RUN/checkpoint")  # fmt: skip
    return folder


def load_start(folder: Path, slot: Slot = "zero", autoencoder: str | None = None) -> tuple[Checkpoint, str, bool]:
    """(checkpoint, tokenizer JSON, is it a trained DiGSeg) from a directory of either kind."""
    if (folder / "digseg.json").is_file():
        if autoencoder:
            raise UsageError(f"--autoencoder replaces the autoencoder of a Stable Diffusion start; {folder} is a DiGSeg "
                             "checkpoint, whose networks were trained with their own")  # fmt: skip
        return load_checkpoint(folder), (folder / "tokenizer" / "tokenizer.json").read_text(), True
    checkpoint, tokenizer_json = load_stable_diffusion(folder, slot=slot, autoencoder=autoencoder)
    return checkpoint, tokenizer_json, False


def finetune(
    source: str, out: Path, config: FinetuneConfig | None = None, resume: bool = False, data: Data = "scenes",
    slot: Slot = "zero", autoencoder: str | None = None, student_only: bool = False, detail_blocks: int | None = None,
    override: bool = False,
) -> Path:  # fmt: skip
    """Train from `source` into `out`; returns the checkpoint directory.

    data: "scenes", "scenes:DOMAIN,..." or a directory of labelled pictures, or several, each with =WEIGHT behind it or not.
    Raises CheckpointError for an unusable start, UsageError for an occupied `out`, InputError for unusable data.
    detail_blocks: see `deepen_stem`.
    """
    config = config or FinetuneConfig()
    run = Run(out, resume, config.seed, override)
    start = find_start(source)
    checkpoint, tokenizer_json, trained = load_start(start, slot, autoencoder)
    if student_only and not trained:
        raise UsageError(
            f"--student-only needs a DiGSeg checkpoint to start from; {source} is a Stable Diffusion model"
        )
    if config.dense and not all(is_scenes(share.data) for share in parse_shares(data)):
        raise UsageError(
            f"dense labels exist for generated scenes only, got --data {data!r}; leave out --set dense=true"
        )
    checkpoint.config = replace(checkpoint.config, image_size=config.size or checkpoint.config.image_size)
    check_data(checkpoint, data, config)
    torch.manual_seed(config.seed)
    if detail_blocks is not None:
        deepen_stem(checkpoint, detail_blocks)
    asked = {
        "init": source,
        "data": data if isinstance(data, str) else list(data),
        "slot": slot,
        "autoencoder": autoencoder,
    }
    run.describe(config, **asked, student_only=student_only, detail_blocks=detail_blocks)
    move(checkpoint)
    before = None if not trained else student_score(checkpoint, data, config)
    stages = {name: stage for name, stage in stages_of(config).items() if name == "student" or not student_only}
    print_schedule(out, stages, checkpoint, checkpoint.config.image_size)
    freeze(checkpoint.vae, checkpoint.text_encoder)
    batches = open_batches(checkpoint, data, config, out)
    if not student_only:
        _train_reference(run, checkpoint, batches, config, data)
    if not trained:
        checkpoint.student.unet.load_state_dict(checkpoint.reference.unet.state_dict())
        checkpoint.student.set_whitening(
            typical_tokens(checkpoint.text_encoder, checkpoint.tokenizer, batches.names, batches.phrase)
        )
    freeze(checkpoint.reference)
    checkpoint.student.requires_grad_(True)
    used = ("vae", "text_encoder", "student", *(("reference",) if config.imitate_every else ()))
    keep_on_device(checkpoint, used)
    parts = (checkpoint.vae, checkpoint.text_encoder, checkpoint.tokenizer, checkpoint.reference, checkpoint.schedule)
    learner = Tutored(checkpoint.student) if config.dense else checkpoint.student
    loss = DistillationLoss(batches, *parts, config.student, every=config.imitate_every)

    def held_out(pictures: Batches) -> Loss:
        return DistillationLoss(pictures, *parts, config.student, every=0)

    validator = student_validator(checkpoint, data, config, config.student, held_out)
    run.stage("student", learner, loss, config.student, validator)
    folder = run.finish(checkpoint, tokenizer_json, start if trained else None)
    print_score(before, student_score(checkpoint, data, config))
    return folder


def outline(source: str, slot: Slot = "zero", autoencoder: str | None = None) -> Checkpoint:
    """The networks that `load_start` would give, built from their configurations alone, weights random."""
    folder = find_start(source)
    if (folder / CONFIG).is_file():
        return outline_checkpoint(folder)
    return outline_stable_diffusion(folder, slot, autoencoder)


def plan_finetune(
    source: str, config: FinetuneConfig, data: Data, limit: float | None = None, slot: Slot = "zero",
    autoencoder: str | None = None, student_only: bool = False, precision: str = "no",
) -> tuple[list[StagePlan], int | None]:  # fmt: skip
    """(the plan of every stage, pictures in the data set or None for scenes); nothing is read but configurations."""
    with torch.device("meta"):
        size = config.size or outline(source, slot, autoencoder).config.image_size
    stages = {name: stage for name, stage in stages_of(config).items() if name == "student" or not student_only}
    folders = [share.data for share in parse_shares(data) if not is_scenes(share.data)]
    opened = [open_dataset(folder, config.folder.layout, config.folder.split) for folder in folders]
    pictures = sum(len(dataset) for dataset in opened) if opened else None
    encodes = bool(folders) and not config.folder.cached_crops
    say = partial(note, "digseg")
    build = partial(outline, source, slot, autoencoder)
    return plan(build, stages, size, limit, encodes, precision, config.imitate_every, say), pictures


def _train_reference(run: Run, checkpoint: Checkpoint, batches: Batches, config: FinetuneConfig, data: Data) -> None:
    checkpoint.reference.requires_grad_(True)
    keep_on_device(checkpoint, ("vae", "text_encoder", "reference"))
    frozen = (checkpoint.vae, checkpoint.text_encoder, checkpoint.tokenizer)
    noisy = PairSource(batches, *frozen, config.reference)
    denoising = DenoisingLoss(noisy, checkpoint.schedule, config.noise)
    run.stage("reference", checkpoint.reference, denoising, config.reference)

    def one_step(pictures: Batches) -> Loss:
        return OneStepLoss(PairSource(pictures, *frozen, config.one_step), checkpoint.schedule)

    validator = reference_validator(checkpoint, data, config, config.one_step, loss=one_step)
    with recomputing(config.one_step.gradient_checkpointing, checkpoint.vae):
        run.stage("one_step", checkpoint.reference, one_step(batches), config.one_step, validator)


def check_data(checkpoint: Checkpoint, data: Data, config: FinetuneConfig | Any) -> None:
    """Refuse data and a size that cannot be used, before anything is written. Raises UsageError or InputError."""
    size = config.size or checkpoint.config.image_size
    if size % checkpoint.stride or size < 2 * checkpoint.stride:
        raise UsageError(
            f"training size must be a multiple of {checkpoint.stride} for this model, at least {2 * checkpoint.stride}, got "
            f"{size}"
        )
    for share in parse_shares(data):
        _check_share(share.data, config.folder)


def _check_share(data: str, options: FolderOptions) -> None:
    if is_scenes(data):
        parse_domains(data)
        return
    if not is_data(data):
        raise UsageError(
            f"--data must be scenes, scenes:DOMAIN,..., a folder of labelled pictures or shards, got {data!r}"
        )
    opened = open_dataset(data, options.layout, options.split)
    for said in check_marks(opened, READ) if PartialState().is_main_process else []:
        note("digseg", f"warning: {said}")


def open_batches(checkpoint: Checkpoint, data: Data, config: FinetuneConfig, out: Path) -> Batches:
    """Training batches from scenes, from a directory of labelled pictures, or from a mixture (see `check_data`)."""
    shares = parse_shares(data)
    parts = [_share_batches(checkpoint, share.data, config, out) for share in shares]
    return parts[0] if len(parts) == 1 else MixedBatches(parts, [share.weight for share in shares], config.seed)


def _share_batches(checkpoint: Checkpoint, data: str, config: FinetuneConfig, out: Path) -> Batches:
    size = config.size or checkpoint.config.image_size
    if is_scenes(data):
        pools = scene_pools(parse_domains(data), config.scenes, size, out / "pools")
        cache_latents(checkpoint.vae, pools, out / "pools")
        return scene_batches(pools, config.seed)
    return folder_batches(checkpoint.vae, data, size, config.seed, config.folder, out / "latents")
