"""The autoencoder between pictures and latents: Stable Diffusion's `AutoencoderKL` or the light `AutoencoderTiny`.

Both are diffusers' own classes; this module hides their difference, renders masks as pictures, and gives the tiny one a
starting point that is already a working codec.
"""

from __future__ import annotations

import hashlib
from typing import Any, TypeAlias

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from torch import Tensor, nn

Autoencoder: TypeAlias = AutoencoderKL | AutoencoderTiny


def build_autoencoder(sizes: dict[str, Any]) -> Autoencoder:
    """A new autoencoder from diffusers' own config arguments; the tiny one starts as an average-pooling codec."""
    if "encoder_block_out_channels" not in sizes:
        return AutoencoderKL(**sizes)
    vae = AutoencoderTiny(**sizes)
    start_as_average(vae)
    return vae


def latent_stride(vae: Autoencoder) -> int:
    """Picture pixels per latent pixel: 8 for Stable Diffusion, 4 for the bundled model."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def raw_latent(vae: Autoencoder, image: Tensor) -> Tensor:
    """image [B, 3, H, W] in -1..1 -> unscaled latent [B, 4, h, w] (the mean of the posterior: deterministic)."""
    encoded = vae.encode(image)
    return encoded.latents if isinstance(vae, AutoencoderTiny) else encoded.latent_dist.mode()


def encode_image(vae: Autoencoder, image: Tensor) -> Tensor:
    """image [B, 3, H, W] in -1..1 -> scaled latent [B, 4, h, w]."""
    return raw_latent(vae, image) * vae.config.scaling_factor


def draw_mask(mask: Tensor) -> Tensor:
    """mask [B, H, W] in 0..1 -> a -1/+1, 3-channel picture [B, 3, H, W]."""
    return (mask * 2 - 1)[:, None].expand(-1, 3, -1, -1)


def encode_mask(vae: Autoencoder, mask: Tensor) -> Tensor:
    """mask [B, H, W] in 0..1 -> latent of the mask rendered as a -1/+1, 3-channel picture [B, 4, h, w]."""
    return encode_image(vae, draw_mask(mask))


def decode_value(vae: Autoencoder, latent: Tensor) -> Tensor:
    """latent [B, 4, h, w] -> about -1 (outside) to +1 (inside) [B, H, W]: mean of the 3 channels of the decoded picture."""
    return vae.decode(latent / vae.config.scaling_factor).sample.float().mean(1)


def decode_mask(vae: Autoencoder, latent: Tensor) -> Tensor:
    """latent [B, 4, h, w] -> mask logits [B, H, W]: the inverse of tanh(x/2) of the decoded value."""
    return 2 * torch.atanh(decode_value(vae, latent).clamp(-0.999, 0.999))


@torch.no_grad()
def start_as_average(vae: AutoencoderTiny) -> None:
    """Set a tiny autoencoder to encode by average pooling and decode by repetition, in place.

    The first three channels carry red, green and blue (0..1, so they pass every ReLU), the residual blocks start at
    zero, everything else keeps its random weights. From random weights alone the colours are learned last and slowly.
    """
    for block in [m for m in vae.modules() if isinstance(m, AutoencoderTinyBlock)]:
        nn.init.zeros_(block.conv[-1].weight)
        nn.init.zeros_(block.conv[-1].bias)
    convolutions = [m for m in (*vae.encoder.layers, *vae.decoder.layers) if isinstance(m, nn.Conv2d)]
    for conv in convolutions:
        _carry_colours(conv)
    last_encoder = vae.encoder.layers[-1]
    last_encoder.weight[:3] *= 2  # latents in about -1..1
    last_encoder.bias[:3] = -1
    first_decoder = vae.decoder.layers[0]
    first_decoder.weight[:3] /= 2
    first_decoder.bias[:3] = 0.5


def _carry_colours(conv: nn.Conv2d) -> None:
    conv.weight[:3] = 0
    if conv.bias is not None:
        conv.bias[:3] = 0
    for colour in range(3):
        if conv.stride == (2, 2):
            conv.weight[colour, colour, 1:, 1:] = 0.25  # the 2 x 2 pixels of this output pixel
        else:
            conv.weight[colour, colour, 1, 1] = 1


def fingerprint(vae: Autoencoder) -> str:
    """Short hash of an autoencoder's weights and scale."""
    digest = hashlib.sha256(str(vae.config.scaling_factor).encode())
    for name, value in sorted(vae.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:12]
