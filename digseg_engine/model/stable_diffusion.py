"""Start from Stable Diffusion: a 1.x or 2.x directory in diffusers' format, or its hub id, becomes an untrained DiGSeg.

    model/ = unet/ vae/ text_encoder/ tokenizer/ scheduler/          safetensors; whole, sharded, or the fp16 variant

The autoencoder and text encoder stay as they are; the U-Net's first convolution is widened for the mask latent. Networks
that predict noise (SD 1.x, 2.1-base) keep their own noise schedule and are read as v-predictions (see `reference.py`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizerFast

from digseg_engine.errors import CheckpointError, UsageError
from digseg_engine.model.autoencoder import latent_stride
from digseg_engine.model.config import SD21, TINY, DigsegConfig, Prediction, StudentConfig
from digseg_engine.model.folder import find_directory
from digseg_engine.model.pretrained import (
    Checkpoint,
    Networks,
    assemble,
    autoencoder_class,
    from_pretrained,
    outline_networks,
    quiet_libraries,
)
from digseg_engine.model.reference import Slot, expand_conv_in
from digseg_engine.model.sampler import BETA_END, BETA_START
from digseg_engine.text import PromptTokenizer

LARGE = 256  # a U-Net at least this wide at its finest scale gets the student sizes of `sd21`
NETWORKS = ("unet", "vae", "text_encoder")


def load_stable_diffusion(
    source: str | Path, name: str = "digseg", slot: Slot = "zero", autoencoder: str | Path | None = None
) -> tuple[Checkpoint, str]:
    """(untrained DiGSeg, its tokenizer as JSON) from a Stable Diffusion directory or hub id.

    slot: how the mask latent enters the first convolution, see `expand_conv_in`. autoencoder: directory or hub id of an
    AutoencoderTiny with the same latents, to replace the slow one. Raises CheckpointError naming the missing or
    unusable file.
    """
    quiet_libraries()
    folder = find_directory(source)
    _require(folder)
    unet = _network(UNet2DConditionModel, folder / "unet")
    text_encoder = _network(CLIPTextModel, folder / "text_encoder")
    vae = _tiny_autoencoder(autoencoder) if autoencoder else _network(autoencoder_class(folder / "vae"), folder / "vae")
    _check_sizes(folder, unet, text_encoder, vae)
    if unet.config.in_channels == 4:
        expand_conv_in(unet, slot)
    raw = CLIPTokenizerFast.from_pretrained(folder / "tokenizer", local_files_only=True).backend_tokenizer
    tokenizer = PromptTokenizer(raw)
    made = assemble(describe(folder, unet, vae, name), Networks(unet, vae, text_encoder), tokenizer)
    made.student.unet.load_state_dict(unet.state_dict())
    made.student.neutral = empty_prompt(text_encoder, tokenizer)
    for module in (vae, text_encoder):
        module.eval().requires_grad_(False)
    return made, raw.to_str()


def describe(folder: Path, unet: UNet2DConditionModel, vae: Any, name: str = "digseg") -> DigsegConfig:
    """The configuration that a DiGSeg of these networks gets."""
    return DigsegConfig(
        name=name,
        image_size=int(unet.config.sample_size or 64) * latent_stride(vae),
        pathway_heads=SD21.digseg.pathway_heads if unet.config.block_out_channels[0] >= LARGE else 4,
        train_timesteps=_scheduler(folder).get("num_train_timesteps", 1000),
        prediction=_prediction(folder),
        **_betas(folder),
        student=student_sizes(unet),
    )


def outline_stable_diffusion(folder: Path, slot: Slot = "zero", autoencoder: str | Path | None = None) -> Checkpoint:
    """The networks that `load_stable_diffusion` would give, built from their configurations alone, weights random."""
    _require(folder)
    parts = outline_networks(folder, find_directory(autoencoder) if autoencoder else folder / "vae")
    _check_sizes(folder, parts.unet, parts.text_encoder, parts.vae)
    if parts.unet.config.in_channels == 4:
        expand_conv_in(parts.unet, slot)
    raw = CLIPTokenizerFast.from_pretrained(folder / "tokenizer", local_files_only=True).backend_tokenizer
    return assemble(describe(folder, parts.unet, parts.vae), parts, PromptTokenizer(raw))


def student_sizes(unet: UNet2DConditionModel) -> StudentConfig:
    """Student sizes that suit a U-Net: those of `sd21` from 256 channels at the finest scale, else those of `tiny`."""
    return (SD21 if unet.config.block_out_channels[0] >= LARGE else TINY).digseg.student


@torch.no_grad()
def empty_prompt(text_encoder: CLIPTextModel, tokenizer: PromptTokenizer) -> torch.Tensor:
    """Features of the prompt "" (start and end token): [1, 2, D], the trunk's neutral prompt."""
    return text_encoder(torch.tensor([tokenizer.ids("")])).last_hidden_state.float()


def _require(folder: Path) -> None:
    wanted: list[tuple[str, ...]] = [(f"{part}/config.json",) for part in NETWORKS]
    wanted += [("scheduler/scheduler_config.json",), ("tokenizer/tokenizer.json", "tokenizer/vocab.json")]
    for choices in wanted:
        if not any((folder / choice).is_file() for choice in choices):
            raise CheckpointError(f"{folder} lacks {' or '.join(choices)}; expected a Stable Diffusion directory in "
                                  "diffusers' format (unet/ vae/ text_encoder/ tokenizer/ scheduler/)")  # fmt: skip


def _network(kind: Any, folder: Path) -> Any:
    """Load one part from its whole, sharded or fp16-variant safetensors."""
    stem = "model" if kind is CLIPTextModel else "diffusion_pytorch_model"
    found = {variant: _weights(folder, stem, variant) for variant in (None, "fp16")}
    variants = [variant for variant, path in found.items() if path is not None]
    if not variants:
        raise CheckpointError(f"{folder} has no weights: expected {stem}.safetensors, its shards with "
                              f"{stem}.safetensors.index.json, or {stem}.fp16.safetensors; "
                              "other formats can hold programs and are not read")  # fmt: skip
    return from_pretrained(kind, folder, variant=variants[0])


def _weights(folder: Path, stem: str, variant: str | None) -> Path | None:
    middle = f".{variant}" if variant else ""
    names = (f"{stem}{middle}.safetensors", f"{stem}.safetensors.index{middle}.json")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _tiny_autoencoder(source: str | Path) -> AutoencoderTiny:
    folder = find_directory(source)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} lacks config.json; expected the directory of an AutoencoderTiny")
    return _network(AutoencoderTiny, folder)


def _scheduler(folder: Path) -> dict[str, Any]:
    path = folder / "scheduler" / "scheduler_config.json"
    try:
        body: dict[str, Any] = json.loads(path.read_text())
        return body
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}; restore it from the model's source") from error


def _prediction(folder: Path) -> Prediction:
    found = _scheduler(folder).get("prediction_type", "epsilon")
    if found not in ("epsilon", "v_prediction"):
        raise CheckpointError(f"{folder}/scheduler/scheduler_config.json: prediction_type {found!r}; expected epsilon "
                              "or v_prediction, as in Stable Diffusion 1.x and 2.x")  # fmt: skip
    return "epsilon" if found == "epsilon" else "v_prediction"


def _betas(folder: Path) -> dict[str, Any]:
    """The noise that the network was trained on. Raises CheckpointError for a schedule that is not one of ours."""
    body, path = _scheduler(folder), folder / "scheduler" / "scheduler_config.json"
    kind = body.get("beta_schedule", "scaled_linear")
    if kind not in ("scaled_linear", "linear") or body.get("trained_betas") is not None:
        what = "trained_betas" if body.get("trained_betas") is not None else f"beta_schedule {kind!r}"
        raise CheckpointError(f"{path}: {what}; expected scaled_linear or linear with beta_start and beta_end, as Stable "
                              "Diffusion 1.x and 2.x have them: other noise gives the answers another meaning")  # fmt: skip
    start, end = body.get("beta_start", BETA_START), body.get("beta_end", BETA_END)
    if not (isinstance(start, int | float) and isinstance(end, int | float) and 0 < start < end < 1):
        raise CheckpointError(
            f"{path}: beta_start {start!r} and beta_end {end!r}; expected 0 < beta_start < beta_end < 1"
        )
    return {"beta_schedule": kind, "beta_start": float(start), "beta_end": float(end)}


def _check_sizes(folder: Path, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, vae: Any) -> None:
    wanted, got = unet.config.cross_attention_dim, text_encoder.config.hidden_size
    if wanted != got:
        raise CheckpointError(f"{folder}: the text encoder gives {got} channels but the U-Net reads {wanted}; "
                              "expected parts of one model")  # fmt: skip
    if unet.config.in_channels not in (4, 8) or vae.config.latent_channels != 4:
        raise UsageError(f"{folder}: U-Net with {unet.config.in_channels} input channels and an autoencoder with "
                         f"{vae.config.latent_channels} latent channels; expected 4 (or 8 when already widened) and 4: "
                         "inpainting, upscaling, XL and SD 3 models do not fit")  # fmt: skip
