"""Small random Stable Diffusion directories in exactly diffusers' on-disk format, for tests."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, UNet2DConditionModel
from tokenizers import Tokenizer
from transformers import CLIPTextConfig, CLIPTextModel

WIDTHS = (16, 24, 32, 32)


def write_directory(
    folder: Path, raw_tokenizer: Tokenizer, style: str = "2.1", variant: str | None = None, shard: str | None = None
) -> Path:
    """style "1.5" (predicts noise, convolutional projections) or "2.1" (v-prediction, linear projections)."""
    torch.manual_seed(0)
    modern = style == "2.1"
    unet = UNet2DConditionModel(
        sample_size=12 if modern else 8, in_channels=4, out_channels=4, block_out_channels=WIDTHS, layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), norm_num_groups=8,
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3, cross_attention_dim=24,
        attention_head_dim=(1, 2, 4, 4) if modern else 4, use_linear_projection=modern,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16, 16), down_block_types=("DownEncoderBlock2D",) * 4, layers_per_block=1,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, norm_num_groups=4, sample_size=96,
    )  # fmt: skip
    text = CLIPTextModel(
        CLIPTextConfig(vocab_size=704, hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
                       hidden_act="gelu" if modern else "quick_gelu", bos_token_id=0, eos_token_id=1, pad_token_id=1)
    )  # fmt: skip
    parts = {"unet": unet, "vae": vae, "text_encoder": text}
    for name, part in parts.items():
        stored = part.half() if variant == "fp16" else part
        options = {"max_shard_size": shard} if shard and name == "unet" else {}
        stored.save_pretrained(folder / name, variant=variant, safe_serialization=True, **options)
    _tokenizer(folder / "tokenizer", raw_tokenizer)
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    kind = DDIMScheduler if modern else PNDMScheduler
    prediction = "v_prediction" if modern else "epsilon"
    kind(**betas, prediction_type=prediction).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    return folder


def _tokenizer(folder: Path, raw: Tokenizer) -> None:
    """vocab.json and merges.txt, as the original models keep them."""
    folder.mkdir(parents=True)
    raw.model.save(str(folder))
    ends = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    settings = {**ends, "pad_token": "<|endoftext|>", "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").write_text(json.dumps({**ends, "pad_token": "<|endoftext|>"}))
