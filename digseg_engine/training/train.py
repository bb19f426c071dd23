"""`digseg train`: autoencoder -> text encoder -> reference -> student, from nothing to a checkpoint directory.

Each stage leaves its weights in `OUT/<stage>/weights.safetensors`; a stage that is complete is not trained again, and
`--resume` continues an interrupted one. The finished checkpoint is `OUT/checkpoint`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from digseg_engine.errors import UsageError
from digseg_engine.model.autoencoder import encode_image, raw_latent
from digseg_engine.model.config import preset
from digseg_engine.model.pretrained import Checkpoint, build, save_checkpoint
from digseg_engine.text import PromptTokenizer
from digseg_engine.training.loop import Loss, StageConfig, train_stage
from digseg_engine.training.pool import Pool, SceneBatches, build_pool, to_tensor
from digseg_engine.training.record import record_run
from digseg_engine.training.scenes import DOMAINS
from digseg_engine.training.stages import (
    AlignmentLoss,
    AutoencoderLoss,
    DenoisingLoss,
    DistillationLoss,
    TextAlignment,
    encode_text,
    typical_tokens,
)
from digseg_engine.training.vocabulary import train_tokenizer

SHARES = {"objects": 0.68, "textures": 0.08, "microscopy": 0.08, "aerial": 0.08, "crops": 0.08}


@dataclass(frozen=True)
class TrainConfig:
    """One run: scenes per domain and size, and the length of every stage."""

    seed: int = 0
    scenes: int = 12000  # per domain; `objects` gets twice as many
    large_scenes: int = 1250  # the same at the last stage's size; `objects` gets four times as many
    autoencoder: StageConfig = StageConfig(1000, 48, 2e-3, size=32)  # crops
    text: StageConfig = StageConfig(700, 32, 1e-3)
    reference: StageConfig = StageConfig(800, 24, 1e-3)
    student: StageConfig = StageConfig(2400, 24, 2.5e-3, ema=0.995, stop=1000, compile=True)
    student_large: StageConfig = StageConfig(1500, 8, 2e-3, size=128, ema=0.99, stop=500, compile=True)

    def scaled(self, factor: float) -> TrainConfig:
        """The same run with `factor` times the steps and scenes (at least a handful), for trials and tests."""
        if factor <= 0:
            raise UsageError(f"scale must be above 0, got {factor}")
        short: dict[str, Any] = {
            name: replace(stage, steps=max(2, round(stage.steps * factor))) for name, stage in self.stages().items()
        }
        few = {name: max(32, round(getattr(self, name) * factor)) for name in ("scenes", "large_scenes")}
        return replace(self, **short, **few)

    def stages(self) -> dict[str, StageConfig]:
        return {name: value for name, value in self.__dict__.items() if isinstance(value, StageConfig)}


class Trainer:
    """Runs the stages in order over one checkpoint being built."""

    def __init__(self, config_name: str, config: TrainConfig, out: Path, resume: bool) -> None:
        self.config, self.out, self.resume = config, out, resume
        chosen = preset(config_name)
        torch.manual_seed(config.seed)
        raw = train_tokenizer(chosen.text["vocab_size"])
        self.tokenizer_json = raw.to_str(pretty=True)
        self.checkpoint: Checkpoint = build(chosen, PromptTokenizer(raw))
        out.mkdir(parents=True, exist_ok=True)
        (out / "train.json").write_text(json.dumps({"config": config_name, **asdict(config)}, indent=2) + "\n")

    def run(self) -> Path:
        """Train what is not yet trained; return the finished checkpoint directory."""
        c = self.checkpoint
        small = self._pools(self.config.scenes, 64, 2)
        batches = SceneBatches(small, SHARES, self.config.seed)
        self._stage("autoencoder", c.vae, AutoencoderLoss(batches, self.config.autoencoder))
        self._cache_latents(small)
        alignment = TextAlignment(c.text_encoder)
        self._stage("text", alignment, AlignmentLoss(batches, c.tokenizer, self.config.text))
        self._freeze()
        parts = (c.vae, c.text_encoder, c.tokenizer)
        denoising = DenoisingLoss(batches, *parts, c.schedule, self.config.reference)
        self._stage("reference", c.reference, denoising)
        c.reference.requires_grad_(False)
        c.student.unet.load_state_dict(c.reference.unet.state_dict())
        distillation = DistillationLoss(batches, *parts, c.reference, c.schedule, self.config.student)
        self._stage("student", c.student, distillation)
        large = self._pools(self.config.large_scenes, self.config.student_large.size, 4)
        self._cache_latents(large)
        batches = SceneBatches(large, SHARES, self.config.seed + 1)
        distillation = DistillationLoss(batches, *parts, c.reference, c.schedule, self.config.student_large)
        self._stage("student_large", c.student, distillation)
        save_checkpoint(c, self.tokenizer_json, self.out / "checkpoint")
        record_run(self.out, list(self.config.stages()), self.out / "checkpoint")
        return self.out / "checkpoint"

    def _stage(self, name: str, module: nn.Module, loss: Loss) -> None:
        folder = self.out / name
        weights = folder / "weights.safetensors"
        if weights.is_file():
            module.load_state_dict(load_file(weights))
            module.eval()
            return
        train_stage(name, module, loss, self.config.stages()[name], folder, self.resume, self.config.seed)
        save_file({key: value.contiguous() for key, value in module.state_dict().items()}, weights)

    def _pools(self, scenes: int, size: int, objects: int) -> dict[str, Pool]:
        counts = {domain: scenes * (objects if domain == "objects" else 1) for domain in DOMAINS}
        return {domain: build_pool(domain, counts[domain], size, self.out / "pools") for domain in DOMAINS}

    @torch.no_grad()
    def _cache_latents(self, pools: dict[str, Pool]) -> None:
        """Encode every picture once; the first call also sets the latent scale to unit standard deviation."""
        vae = self.checkpoint.vae.eval().requires_grad_(False)
        sample = to_tensor(next(iter(pools.values())).images[:256])
        spread = raw_latent(vae, sample).std()
        if not (self.out / "scale.json").is_file():
            (self.out / "scale.json").write_text(json.dumps({"scaling_factor": float(1 / spread)}))
        vae.register_to_config(**json.loads((self.out / "scale.json").read_text()))
        for pool in pools.values():
            stored = self.out / "pools" / f"{pool.domain}-{pool.images.shape[1]}-latents.safetensors"
            if not stored.is_file():
                parts = [encode_image(vae, to_tensor(pool.images[i : i + 64])).half() for i in range(0, len(pool), 64)]
                save_file({"latents": torch.cat(parts).contiguous()}, stored)
            pool.latents = load_file(stored)["latents"]

    def _freeze(self) -> None:
        c = self.checkpoint
        for module in (c.vae, c.text_encoder):
            module.eval().requires_grad_(False)
        with torch.no_grad():
            c.student.neutral.copy_(encode_text(c.text_encoder, c.tokenizer, [""])[0][:, :2])
            c.student.set_whitening(typical_tokens(c.text_encoder, c.tokenizer))


def train(config_name: str, out: Path, config: TrainConfig | None = None, resume: bool = False) -> Path:
    """Train `config_name` into `out`; returns the checkpoint directory. Raises UsageError when `out` is occupied."""
    if out.is_dir() and any(out.iterdir()) and not resume:
        raise UsageError(f"{out} is not empty; expected a new folder, or --resume to continue the run in it")
    if config_name != "tiny":
        raise UsageError(f"training from nothing needs --config tiny, got {config_name!r}; "
                         "the larger presets start from pretrained weights")  # fmt: skip
    return Trainer(config_name, config or TrainConfig(), out, resume).run()
