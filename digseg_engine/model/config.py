"""Model configurations: the presets `tiny` (bundled) and `sd21` (Stable Diffusion 2.1 sizes).

The U-Net, autoencoder and text encoder keep their own `config.json` in diffusers / transformers format; this module
adds what those libraries do not know: the text pathway, the student and the picture size.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from digseg_engine.errors import CheckpointError, UsageError
from digseg_engine.files import write_json
from digseg_engine.model.folder import CHECKPOINT_FORMAT, CONFIG, read_config
from digseg_engine.model.sampler import BETA_END, BETA_START, Schedule
from digseg_engine.working_size import WorkingSize

Prediction = Literal["v_prediction", "epsilon"]
BetaSchedule = Literal["scaled_linear", "linear"]


WIDEST = 16_384  # channels of any part of a student
PRESENCE_WIDTH = 32  # channels of the bundled model's readout, and of one that `digseg train --presence-only` adds


@dataclass(frozen=True)
class StudentConfig:
    """Sizes of the one-step student (see `student.py`).

    width: common width C of the projected decoder features; heads: text-injection heads;
    head_width: channels Co each prompt's map carries; detail_width: channels of the image stem (0: no stem);
    detail_blocks: residual blocks of the stem at each of its two resolutions;
    upsample: sub-pixel factor of the last layer, so logits have `upsample` x the latent resolution;
    presence_width: channels of the presence readout (see `presence.py`; 0: none);
    attention_pool: cells along a side that the trunk's finer self-attentions look at as one (see `pooled_attention.py`; 1: none).
    """

    width: int = 64
    heads: int = 4
    head_width: int = 24
    detail_width: int = 24
    detail_blocks: int = 0
    upsample: int = 2
    presence_width: int = 0
    attention_pool: int = 1

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if type(value) is not int or not 0 <= value <= WIDEST:
                raise UsageError(f"student {name} must be a whole number from 0 to {WIDEST}, got {value!r:.40}")
        if self.heads < 1 or self.width < 1:
            raise UsageError(f"student width and heads must be 1 or more, got {self.width} and {self.heads}")
        if self.width % self.heads:
            raise UsageError(f"student width must be a multiple of its heads, got {self.width} and {self.heads}")
        if self.detail_blocks < 0 or (self.detail_blocks and not self.detail_width):
            raise UsageError(f"student detail_blocks must be 0 or more, and 0 without an image stem, got "
                             f"{self.detail_blocks} with detail_width {self.detail_width}")  # fmt: skip
        if self.presence_width < 0:
            raise UsageError(f"student presence_width must be 0 or more, got {self.presence_width}")
        if self.attention_pool not in (1, 2):
            raise UsageError(f"student attention_pool must be 1 or 2, got {self.attention_pool}")
        if self.upsample not in (1, 2, 4):
            raise UsageError(f"student upsample must be 1, 2 or 4, got {self.upsample}")


@dataclass(frozen=True)
class DigsegConfig:
    """What a DiGSeg checkpoint adds to a Stable Diffusion directory; stored as `digseg.json`."""

    name: str
    image_size: int  # pixels of the longer side the model is meant for
    pathway_heads: int  # heads of the reference's text pathway
    image_size_max: int | None = None  # larger pictures are worked at their own size up to this; None is image_size
    licence: str | None = None  # of the weights; None is that of what they were trained from
    train_timesteps: int = 1000
    prediction: Prediction = "v_prediction"  # what the U-Net was trained to say
    beta_schedule: BetaSchedule = "scaled_linear"  # the noise that it was trained on, as diffusers names it
    beta_start: float = BETA_START
    beta_end: float = BETA_END
    presence_threshold: float | None = None  # logit under which a prompt is not in a picture; None leaves nothing out
    student: StudentConfig = StudentConfig()

    @property
    def working_size(self) -> WorkingSize:
        """What pictures are worked at where no size is asked for."""
        return WorkingSize(self.image_size, self.image_size_max or self.image_size)

    @cached_property
    def schedule(self) -> Schedule:
        """Zero terminal SNR for v-prediction; noise cannot be read as v there, so epsilon keeps its own schedule."""
        kind = {"scaled_linear": Schedule.scaled_linear, "linear": Schedule.linear}[self.beta_schedule]
        trained = kind(self.train_timesteps, self.beta_start, self.beta_end)
        return trained.to_zero_terminal_snr() if self.prediction == "v_prediction" else trained

    def save(self, folder: Path) -> None:
        body = {"format": CHECKPOINT_FORMAT, **asdict(self)}
        write_json(folder / "digseg.json", body)

    @classmethod
    def load(cls, folder: Path) -> DigsegConfig:
        """Read `digseg.json`. Raises CheckpointError when it is missing, damaged or of another format."""
        body = read_config(folder)
        try:
            student = StudentConfig(**body.pop("student"))
            return cls(**{f.name: body[f.name] for f in fields(cls) if f.name in body}, student=student)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                f"{folder / CONFIG} cannot be read: {error}; restore it from the training run"
            ) from error


@dataclass(frozen=True)
class Preset:
    """A full set of sizes to build a model from nothing; the three dicts are the libraries' own config arguments."""

    digseg: DigsegConfig
    unet: dict[str, Any]
    vae: dict[str, Any]
    text: dict[str, Any]


TINY = Preset(
    digseg=DigsegConfig(
        name="tiny",
        image_size=128,
        pathway_heads=4,
        student=StudentConfig(detail_blocks=2, presence_width=PRESENCE_WIDTH),
    ),
    unet={
        "in_channels": 8,
        "out_channels": 4,
        "block_out_channels": (32, 64, 112),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": (2, 4, 4),
        "norm_num_groups": 8,
        "cross_attention_dim": 128,
        "use_linear_projection": True,
    },
    vae={
        "encoder_block_out_channels": (32, 32, 32),
        "decoder_block_out_channels": (32, 32, 32),
        "num_encoder_blocks": (0, 1, 2),
        "num_decoder_blocks": (2, 1, 0),
        "latent_channels": 4,
    },
    text={
        "vocab_size": 704,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 77,
        "hidden_act": "gelu",
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    },
)

SD21 = Preset(
    digseg=DigsegConfig(
        name="sd21",
        image_size=768,
        pathway_heads=8,
        student=StudentConfig(width=256, heads=8, head_width=64, detail_width=64, upsample=2),
    ),
    unet={
        "in_channels": 8,
        "out_channels": 4,
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "layers_per_block": 2,
        "attention_head_dim": (5, 10, 20, 20),
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
    },
    vae={
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "latent_channels": 4,
        "layers_per_block": 2,
    },
    text={
        "vocab_size": 49408,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
        "max_position_embeddings": 77,
        "hidden_act": "gelu",
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 49407,
    },
)

PRESETS = {"tiny": TINY, "sd21": SD21}


def preset(name: str) -> Preset:
    """The preset called `name`. Raises UsageError listing the known ones."""
    if name not in PRESETS:
        raise UsageError(f"unknown config {name!r}; expected one of {', '.join(PRESETS)}")
    return PRESETS[name]
