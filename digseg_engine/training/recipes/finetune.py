"""`digseg train --init`: from a Stable Diffusion or DiGSeg directory to a checkpoint, on scenes or own data.

Stages: reference A (noisy mask latents), reference B (one step, mask space), student; the recipe says which of them, and for how
long. The autoencoder and the text encoder stay frozen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Protocol, get_args

import torch
from accelerate import PartialState

from digseg_engine.console import note
from digseg_engine.data.batch import Batches
from digseg_engine.data.batches import FolderOptions, folder_batches
from digseg_engine.data.checks import READ, check_marks
from digseg_engine.data.datasets import open_dataset
from digseg_engine.data.mixtures import MixedBatches
from digseg_engine.data.shards import is_data
from digseg_engine.data.shares import Data, parse_shares
from digseg_engine.data.wordings import typical_tokens
from digseg_engine.errors import UsageError
from digseg_engine.model.config import PRESENCE_WIDTH
from digseg_engine.model.folder import CONFIG, find_start
from digseg_engine.model.pretrained import Checkpoint, add_presence, deepen_stem, load_checkpoint, outline_checkpoint
from digseg_engine.model.reference import Slot
from digseg_engine.model.stable_diffusion import load_stable_diffusion, outline_stable_diffusion
from digseg_engine.training.loop import Loss, StageConfig
from digseg_engine.training.objectives.denoising import LATE, DenoisingLoss, check_late
from digseg_engine.training.objectives.learner import learner_of
from digseg_engine.training.objectives.noise import NoiseKind
from digseg_engine.training.objectives.one_step import OneStepLoss
from digseg_engine.training.objectives.pairs import PairSource, check_dropout
from digseg_engine.training.objectives.student import DistillationLoss
from digseg_engine.training.planner import StagePlan, plan
from digseg_engine.training.recipe_files import RecipeSettings, Start, default_recipe, recipe_settings
from digseg_engine.training.recipes.measuring import measure_checkpoint
from digseg_engine.training.recipes.presence import teach_presence
from digseg_engine.training.recipes.summary import print_schedule, print_score, student_score
from digseg_engine.training.recipes.validating import reference_validator, student_validator
from digseg_engine.training.run import Run, divided, freeze, move, stages_of
from digseg_engine.training.thrift import keep_on_device, recomputing
from digseg_engine.worlds.scenes import is_scenes
from digseg_engine.worlds.sources import cache_latents, painted_side, parse_domains, scene_batches, scene_pools


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RecipeSettings):
    """A run from pretrained weights. What has a default is off or neutral; values stand in `assets/recipes/*.toml`."""

    START: ClassVar[Start] = "pretrained"

    scenes: int  # per domain, when trained on scenes
    size: int | None = None  # pixels; None: the model's own
    imitate_every: int = 0  # the student imitates the reference in every so manieth micro-batch; 0: never
    noise: NoiseKind = "gaussian"  # of the stage `reference`; or "multi-resolution", annealed (Marigold's)
    late: float = LATE  # how noisy the timesteps of the stage `reference` are, see `DenoisingLoss`; 1: all alike
    prompt_dropout: float = 0.0  # share of the reference's pairs whose trunk is asked the empty prompt
    dense: bool = (
        False  # the student learns dense labels of single words beside the prompts, where the batch is of scenes
    )
    presence_beside: bool = False  # the student's own stage teaches its presence readout too, and the trunk with it
    folder: FolderOptions = FolderOptions()  # when trained on a folder of labelled pictures
    reference: StageConfig | None = None  # None: the stage is left out
    one_step: StageConfig | None = None
    student: StageConfig | None = None
    presence: StageConfig | None = None  # of a student with a presence readout

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise not in get_args(NoiseKind):
            raise UsageError(f"noise must be one of {', '.join(get_args(NoiseKind))}, got {self.noise!r}")
        check_dropout(self.prompt_dropout)
        check_late(self.late)
        if self.student is None and self.presence is None:
            raise UsageError("this run has neither a [student] nor a [presence] stage, so there is nothing to train; add one to "
                             "the recipe")  # fmt: skip

    @property
    def student_alone(self) -> bool:
        """Whether the reference stays as it is."""
        return self.reference is None and self.one_step is None


def check_stages(config: FinetuneConfig, trained: bool, source: str) -> None:
    """Raises UsageError for a run of the student alone without a trained one to begin with."""
    if config.student_alone and not trained:
        raise UsageError(f"{f'recipe {config.recipe}' if config.recipe else 'this run'} trains the student alone, which needs a "
                         f"DiGSeg checkpoint to start from; {source} is a Stable Diffusion model: use another --recipe, such as "
                         f"{default_recipe(find_start(source))}")  # fmt: skip


def _check_beside(config: FinetuneConfig, data: Data) -> None:
    """Raises UsageError for things to learn beside masks that this run has no data or no stage for."""
    if config.dense and not any(is_scenes(share.data) for share in parse_shares(data)):
        raise UsageError(f"dense labels exist for generated scenes only, and --data {data!r} has none; leave out "
                         "--set dense=true")  # fmt: skip
    if config.presence_beside and config.student is None:
        raise UsageError("presence_beside teaches presence in the student's stage, and this run has no [student]")


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
    slot: Slot = "zero", autoencoder: str | None = None, detail_blocks: int | None = None, override: bool = False,
) -> Path:  # fmt: skip
    """Train from `source` into `out`; returns the checkpoint directory.

    config: None is the default recipe of the start. data: "scenes", "scenes:DOMAIN,..." or a directory of labelled pictures, or
    several, each with =WEIGHT behind it or not.
    Raises CheckpointError for an unusable start, UsageError for an occupied `out`, InputError for unusable data.
    detail_blocks: see `deepen_stem`.
    """
    start = find_start(source)
    config = config or recipe_settings(default_recipe(start), FinetuneConfig)
    run = Run(out, resume, config.seed, override)
    config = divided(config, PartialState().num_processes)
    check_stages(config, (start / CONFIG).is_file(), source)
    checkpoint, tokenizer_json, trained = load_start(start, slot, autoencoder)
    _check_beside(config, data)
    size = config.size or checkpoint.config.image_size
    checkpoint.config = replace(
        checkpoint.config, image_size=size, presence_threshold=None
    )  # of weights that change now
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
    if config.student is None or config.presence_beside:
        add_presence(checkpoint, PRESENCE_WIDTH)
    elif not checkpoint.config.student.presence_width:
        config = replace(config, presence=None)
    run.describe(config, **asked, student_only=config.student_alone, detail_blocks=detail_blocks)
    move(checkpoint)
    before = student_score(checkpoint, data, config) if trained and config.student is not None else None
    print_schedule(out, config, checkpoint, checkpoint.config.image_size)
    freeze(checkpoint.vae, checkpoint.text_encoder)
    batches = open_batches(checkpoint, data, config, out)
    if not config.student_alone:
        _train_reference(run, checkpoint, batches, config, data)
    if not trained:
        checkpoint.student.unet.load_state_dict(checkpoint.reference.unet.state_dict())
        checkpoint.student.set_whitening(
            typical_tokens(checkpoint.text_encoder, checkpoint.tokenizer, batches.names, batches.phrase)
        )
    freeze(checkpoint.reference)
    if config.student is not None:
        _train_student(run, checkpoint, batches, config, config.student, data)
    teach_presence(run, checkpoint, batches, config.presence)
    folder = run.finish(checkpoint, tokenizer_json, start if trained else None)
    measure_checkpoint(checkpoint, folder, data, config, "digseg train")
    if config.student is not None:
        print_score(before, student_score(checkpoint, data, config))
    return folder


def _train_student(
    run: Run, checkpoint: Checkpoint, batches: Batches, config: FinetuneConfig, stage: StageConfig, data: Data
) -> None:  # fmt: skip
    checkpoint.student.requires_grad_(True)
    used = ("vae", "text_encoder", "student", *(("reference",) if config.imitate_every else ()))
    keep_on_device(checkpoint, used)
    parts = (checkpoint.vae, checkpoint.text_encoder, checkpoint.tokenizer, checkpoint.reference, checkpoint.schedule)
    learner = learner_of(checkpoint.student, config.dense, config.presence_beside)
    loss = DistillationLoss(batches, *parts, stage, every=config.imitate_every)

    def held_out(pictures: Batches) -> Loss:
        return DistillationLoss(pictures, *parts, stage, every=0)

    validator = student_validator(checkpoint, data, config, stage, held_out)
    run.stage("student", learner, loss, stage, validator)


def outline(source: str, slot: Slot = "zero", autoencoder: str | None = None) -> Checkpoint:
    """The networks that `load_start` would give, built from their configurations alone, weights random."""
    folder = find_start(source)
    if (folder / CONFIG).is_file():
        return outline_checkpoint(folder)
    return outline_stable_diffusion(folder, slot, autoencoder)


def plan_finetune(
    source: str, config: FinetuneConfig, data: Data, limit: float | None = None, slot: Slot = "zero",
    autoencoder: str | None = None, precision: str = "no",
) -> tuple[list[StagePlan], int | None]:  # fmt: skip
    """(the plan of every stage, pictures in the data set or None for scenes); nothing is read but configurations."""
    check_stages(config, (find_start(source) / CONFIG).is_file(), source)
    with torch.device("meta"):
        size = config.size or outline(source, slot, autoencoder).config.image_size
    folders = [share.data for share in parse_shares(data) if not is_scenes(share.data)]
    opened = [open_dataset(folder, config.folder.layout, config.folder.split) for folder in folders]
    pictures = sum(len(dataset) for dataset in opened) if opened else None
    encodes = bool(folders) and not config.folder.cached_crops
    say = partial(note, "digseg")
    build = partial(outline, source, slot, autoencoder)
    return plan(build, stages_of(config), size, limit, encodes, precision, config.imitate_every, say), pictures


def _train_reference(run: Run, checkpoint: Checkpoint, batches: Batches, config: FinetuneConfig, data: Data) -> None:
    checkpoint.reference.requires_grad_(True)
    keep_on_device(checkpoint, ("vae", "text_encoder", "reference"))
    frozen = (checkpoint.vae, checkpoint.text_encoder, checkpoint.tokenizer)
    if config.reference is not None:
        noisy = PairSource(batches, *frozen, config.reference, config.prompt_dropout)
        denoising = DenoisingLoss(noisy, checkpoint.schedule, config.noise, config.late)
        run.stage("reference", checkpoint.reference, denoising, config.reference)
    stage = config.one_step
    if stage is None:
        return

    def one_step(pictures: Batches) -> Loss:
        return OneStepLoss(PairSource(pictures, *frozen, stage, config.prompt_dropout), checkpoint.schedule)

    validator = reference_validator(checkpoint, data, config, stage, loss=one_step)
    with recomputing(stage.gradient_checkpointing, checkpoint.vae):
        run.stage("one_step", checkpoint.reference, one_step(batches), stage, validator)


class DataSettings(Protocol):
    """What of a run's settings says how its data are read."""

    @property
    def seed(self) -> int: ...
    @property
    def scenes(self) -> int: ...
    @property
    def size(self) -> int | None: ...
    @property
    def folder(self) -> FolderOptions: ...


def check_data(checkpoint: Checkpoint, data: Data, config: DataSettings) -> None:
    """Refuse data and a size that cannot be used, before anything is written. Raises UsageError or InputError."""
    size = config.size or checkpoint.config.image_size
    painted = [painted_side(share.data, size) for share in parse_shares(data) if is_scenes(share.data)]
    for side in (size, *painted):
        if side % checkpoint.stride or side < 2 * checkpoint.stride:
            raise UsageError(
                f"training size must be a multiple of {checkpoint.stride} for this model, at least {2 * checkpoint.stride}, got "
                f"{side}"
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


def open_batches(checkpoint: Checkpoint, data: Data, config: DataSettings, out: Path) -> Batches:
    """Training batches from scenes, from a directory of labelled pictures, or from a mixture (see `check_data`)."""
    shares = parse_shares(data)
    parts = [_share_batches(checkpoint, share.data, config, out) for share in shares]
    return parts[0] if len(parts) == 1 else MixedBatches(parts, [share.weight for share in shares], config.seed)


def _share_batches(checkpoint: Checkpoint, data: str, config: DataSettings, out: Path) -> Batches:
    size = config.size or checkpoint.config.image_size
    if is_scenes(data):
        side = painted_side(data, size)
        pools = scene_pools(parse_domains(data), config.scenes, side, out / "pools")
        cache_latents(checkpoint.vae, pools, out / "pools")
        return scene_batches(pools, config.seed, crowd=max(1, round(size * size / (side * side))))
    return folder_batches(checkpoint.vae, data, size, config.seed, config.folder, out / "latents")
