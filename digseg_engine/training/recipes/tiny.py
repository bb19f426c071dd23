"""`digseg train` from nothing: autoencoder -> backbone -> text encoder -> reference -> student -> presence, to a checkpoint.

Each stage leaves its weights in `OUT/<stage>/weights.safetensors`; a stage that is complete is not trained again, and
`--resume` continues an interrupted one. The finished checkpoint is `OUT/checkpoint`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from accelerate import PartialState

from digseg_engine.data.wordings import typical_tokens
from digseg_engine.errors import UsageError
from digseg_engine.model.config import preset
from digseg_engine.model.pretrained import build
from digseg_engine.text import PromptTokenizer
from digseg_engine.training.loop import StageConfig
from digseg_engine.training.objectives.alignment import AlignmentLoss, TextAlignment
from digseg_engine.training.objectives.autoencoder import AutoencoderLoss
from digseg_engine.training.objectives.denoising import LATE, DenoisingLoss, check_late
from digseg_engine.training.objectives.dense import Backbone, BackboneLoss
from digseg_engine.training.objectives.learner import learner_of
from digseg_engine.training.objectives.pairs import PairSource, check_dropout
from digseg_engine.training.objectives.student import DistillationLoss
from digseg_engine.training.objectives.text_to_image import Denoiser, TextToImageLoss
from digseg_engine.training.recipe_files import RecipeSettings, Start, default_recipe, recipe_settings
from digseg_engine.training.recipes.measuring import measure_checkpoint
from digseg_engine.training.recipes.presence import teach_presence
from digseg_engine.training.recipes.summary import print_schedule
from digseg_engine.training.recipes.validating import student_validator
from digseg_engine.training.run import Run, divided, freeze, move
from digseg_engine.worlds.sources import cache_latents, parse_domains, scene_batches, scene_pools, set_latent_scale
from digseg_engine.worlds.vocabulary import train_tokenizer


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RecipeSettings):
    """A run from nothing. What has a default is off or neutral; the values stand in `assets/recipes/tiny.toml`."""

    START: ClassVar[Start] = "nothing"

    scenes: int  # per domain
    size: int  # pixels
    imitate_every: int = 0  # as in FinetuneConfig
    late: float = LATE  # as in FinetuneConfig
    prompt_dropout: float = 0.0  # as in FinetuneConfig
    dense: bool = False  # the student learns dense labels of single words beside the prompts
    autoencoder: StageConfig
    denoiser: StageConfig | None = None  # None: the trunk never denoises pictures
    backbone: StageConfig | None = None  # None: the trunk sees no dense labels before the student does
    text: StageConfig
    reference: StageConfig
    student: StageConfig
    presence: StageConfig | None = None  # None: the readout stays as it was drawn

    def __post_init__(self) -> None:
        super().__post_init__()
        check_dropout(self.prompt_dropout)
        check_late(self.late)
        if self.denoiser is None and self.backbone is None:
            raise UsageError("the trunk needs a pretraining, which the text encoder is aligned with: give the recipe [denoiser], "
                             "[backbone] or both")  # fmt: skip


def train(
    name: str, out: Path, config: TrainConfig | None = None, resume: bool = False, data: str = "scenes",
    override: bool = False,
) -> Path:  # fmt: skip
    """Train the preset `name` from nothing into `out`; returns the checkpoint directory.

    data: "scenes" or "scenes:DOMAIN,...". Raises UsageError when `out` is occupied or the preset is too large for it.
    """
    if name != "tiny":
        raise UsageError(f"training from nothing needs --config tiny, got {name!r}; "
                         "the larger presets start from pretrained weights (--init)")  # fmt: skip
    config = config or recipe_settings(default_recipe(None), TrainConfig)
    run = Run(out, resume, config.seed, override)
    config = divided(config, PartialState().num_processes)
    domains, chosen = parse_domains(data), preset(name)
    run.describe(config, config=name, data=data)
    torch.manual_seed(config.seed)
    raw = train_tokenizer(chosen.text["vocab_size"])
    checkpoint = move(build(chosen, PromptTokenizer(raw)))
    print_schedule(out, config, checkpoint, config.size)

    # 1. Autoencoder, then frozen.
    pools = scene_pools(domains, config.scenes, config.size, out / "pools")
    batches = scene_batches(pools, config.seed)
    run.stage("autoencoder", checkpoint.vae, AutoencoderLoss(batches, config.autoencoder), config.autoencoder)
    set_latent_scale(checkpoint.vae, pools, out / "scale.json")
    cache_latents(checkpoint.vae, pools, out / "pools")
    # 2. Trunk: what pretrained diffusion weights give a large model, the same way or by dense labels.
    if config.denoiser is not None:
        freeze(checkpoint.text_encoder)  # not trained yet: captions are told apart all the same
        told = checkpoint.text_encoder, checkpoint.tokenizer, checkpoint.schedule, config.denoiser
        run.stage("denoiser", Denoiser(checkpoint.student.unet), TextToImageLoss(batches, *told), config.denoiser)
        checkpoint.text_encoder.requires_grad_(True)
    if config.backbone is not None:
        run.stage("backbone", Backbone(checkpoint.student), BackboneLoss(batches, config.backbone), config.backbone)
    # 3. Text encoder, aligned with the backbone's features, then frozen.
    alignment = TextAlignment(
        checkpoint.text_encoder, checkpoint.student.config.width * len(checkpoint.student.strides)
    )
    aligning = AlignmentLoss(batches, checkpoint.student, checkpoint.tokenizer, config.text)
    run.stage("text", alignment, aligning, config.text)
    freeze(checkpoint.vae, checkpoint.text_encoder)
    checkpoint.student.set_whitening(
        typical_tokens(checkpoint.text_encoder, checkpoint.tokenizer, batches.names, batches.phrase)
    )
    # 4. Reference.
    checkpoint.reference.unet.load_state_dict(checkpoint.student.unet.state_dict())
    frozen = (checkpoint.vae, checkpoint.text_encoder, checkpoint.tokenizer)
    source = PairSource(batches, *frozen, config.reference, config.prompt_dropout)
    denoising = DenoisingLoss(source, checkpoint.schedule, late=config.late)
    run.stage("reference", checkpoint.reference, denoising, config.reference)
    freeze(checkpoint.reference)
    # 5. Student.
    parts = (*frozen, checkpoint.reference, checkpoint.schedule)
    learner = learner_of(checkpoint.student, config.dense)
    imitate = DistillationLoss(batches, *parts, config.student, every=config.imitate_every)
    validator = student_validator(checkpoint, data, config, config.student)
    run.stage("student", learner, imitate, config.student, validator)
    # 6. Presence readout.
    teach_presence(run, checkpoint, batches, config.presence)
    folder = run.finish(checkpoint, raw.to_str(pretty=True))
    measure_checkpoint(checkpoint, folder, data, config, "digseg train")
    return folder
