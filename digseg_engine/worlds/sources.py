"""Where training batches come from: generated scenes held in pools, with their latents cached."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from digseg_engine.console import Pace
from digseg_engine.data.batch import to_tensor
from digseg_engine.errors import UsageError
from digseg_engine.files import replacing, write_text
from digseg_engine.model.autoencoder import Autoencoder, encode_image, fingerprint, raw_latent
from digseg_engine.model.devices import device_of
from digseg_engine.worlds.pool import Pool, SceneBatches, build_pool
from digseg_engine.worlds.scenes import DOMAINS

# How often each domain is drawn: `objects` has the pairs of colour and shape that open vocabulary is learned from, the others a
# few words each. Chosen by hand, not searched.
SHARES = {"objects": 0.76, "textures": 0.06, "microscopy": 0.06, "aerial": 0.06, "crops": 0.06}
MOST, PIXELS = 64, 64 * 128 * 128  # encoded together: a large autoencoder needs about 2 KB for each pixel of float32
CROWD = 5  # `objects` has this many times the scenes of another domain


def parse_domains(text: str) -> tuple[str, ...]:
    """ "scenes" -> all domains, "scenes:crops,aerial@128" -> those. Raises UsageError for unknown ones."""
    _, _, listed = text.partition("@")[0].partition(":")
    domains = tuple(listed.split(",")) if listed else DOMAINS
    unknown = [name for name in domains if name not in DOMAINS]
    if unknown:
        raise UsageError(f"unknown scene domain {unknown[0]!r} in {text!r}; expected some of {', '.join(DOMAINS)}")
    return domains


def painted_side(text: str, size: int) -> int:
    """The side in pixels that scenes are painted at: what "scenes@128" says, else `size`. Raises UsageError for what is no
    number."""
    _, at, side = text.partition("@")
    if not at:
        return size
    if not side.isdecimal() or not int(side):
        raise UsageError(
            f"{text}: after @ comes the side of painted scenes in pixels, such as scenes@128, got {side!r}"
        )
    return int(side)


def scene_pools(domains: tuple[str, ...], scenes: int, size: int, cache: Path) -> dict[str, Pool]:
    """Paint (or read from `cache`) the training scenes of every domain; one process paints, the others wait."""
    counts = {domain: scenes * (CROWD if domain == "objects" and len(domains) > 1 else 1) for domain in domains}
    with PartialState().main_process_first():
        return {name: build_pool(name, count, size, cache) for name, count in counts.items()}


def scene_batches(pools: dict[str, Pool], seed: int, crowd: int = 1) -> SceneBatches:
    """Batches of scenes, `crowd` times as many pictures in each as asked for."""
    return SceneBatches(pools, SHARES, seed, crowd)


def chunks(images: NDArray[np.uint8], device: torch.device) -> Iterator[Tensor]:
    """Pictures [N, S, S, 3] as tensors [n, 3, S, S] of at most `PIXELS` pixels each (one picture at least)."""
    step = max(1, min(MOST, PIXELS // (images.shape[1] * images.shape[2])))
    for i in range(0, len(images), step):
        yield to_tensor(images[i : i + step]).to(device)


@torch.no_grad()
def set_latent_scale(vae: Autoencoder, pools: dict[str, Pool], stored: Path) -> None:
    """Scale a freshly trained autoencoder's latents to unit standard deviation; remembered in the file `stored`."""
    if not stored.is_file():
        sample = chunks(next(iter(pools.values())).images[:256], device_of(vae))
        raw = torch.cat([raw_latent(vae, chunk).cpu() for chunk in sample])
        write_text(stored, json.dumps({"scaling_factor": float(1 / raw.std())}))
    vae.register_to_config(**json.loads(stored.read_text()))


@torch.no_grad()
def cache_latents(vae: Autoencoder, pools: dict[str, Pool], cache: Path) -> None:
    """Encode every picture once, or read the latents that the same autoencoder left in `cache`."""
    vae.eval().requires_grad_(False)
    key, device = fingerprint(vae), device_of(vae)
    cache.mkdir(parents=True, exist_ok=True)
    with PartialState().main_process_first():
        for pool in pools.values():
            stored = cache / f"{pool.domain}-{pool.images.shape[1]}-{len(pool)}-{pool.key}-{key}.safetensors"
            if not stored.is_file():
                pace, parts = Pace(f"encoding scenes of {pool.domain}", len(pool)), []
                for chunk in chunks(pool.images, device):
                    parts.append(encode_image(vae, chunk).half().cpu())
                    pace(len(chunk))
                latents = torch.cat(parts)
                with replacing(stored) as temporary:
                    save_file({"latents": latents.contiguous()}, temporary)
            pool.latents = load_file(stored)["latents"]
