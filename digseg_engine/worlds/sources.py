"""Where training batches come from: generated scenes held in pools, with their latents cached."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file

from digseg_engine.data.batch import to_tensor
from digseg_engine.errors import UsageError
from digseg_engine.model.autoencoder import Autoencoder, encode_image, fingerprint, raw_latent
from digseg_engine.model.devices import device_of
from digseg_engine.worlds.pool import Pool, SceneBatches, build_pool
from digseg_engine.worlds.scenes import DOMAINS

SHARES = {"objects": 0.76, "textures": 0.06, "microscopy": 0.06, "aerial": 0.06, "crops": 0.06}
CROWD = 5  # `objects` has this many times the scenes of another domain


def parse_domains(text: str) -> tuple[str, ...]:
    """ "scenes" -> all domains, "scenes:crops,aerial" -> those. Raises UsageError for unknown ones."""
    _, _, listed = text.partition(":")
    domains = tuple(listed.split(",")) if listed else DOMAINS
    unknown = [name for name in domains if name not in DOMAINS]
    if unknown:
        raise UsageError(f"unknown scene domain {unknown[0]!r} in {text!r}; expected some of {', '.join(DOMAINS)}")
    return domains


def scene_pools(domains: tuple[str, ...], scenes: int, size: int, cache: Path) -> dict[str, Pool]:
    """Paint (or read from `cache`) the training scenes of every domain; one process paints, the others wait."""
    counts = {domain: scenes * (CROWD if domain == "objects" and len(domains) > 1 else 1) for domain in domains}
    with PartialState().main_process_first():
        return {name: build_pool(name, count, size, cache) for name, count in counts.items()}


def scene_batches(pools: dict[str, Pool], seed: int) -> SceneBatches:
    return SceneBatches(pools, SHARES, seed)


@torch.no_grad()
def set_latent_scale(vae: Autoencoder, pools: dict[str, Pool], stored: Path) -> None:
    """Scale a freshly trained autoencoder's latents to unit standard deviation; remembered in the file `stored`."""
    if not stored.is_file():
        sample = to_tensor(next(iter(pools.values())).images[:256]).to(device_of(vae))
        stored.write_text(json.dumps({"scaling_factor": float(1 / raw_latent(vae, sample).std())}))
    vae.register_to_config(**json.loads(stored.read_text()))


@torch.no_grad()
def cache_latents(vae: Autoencoder, pools: dict[str, Pool], cache: Path) -> None:
    """Encode every picture once, or read the latents that the same autoencoder left in `cache`."""
    vae.eval().requires_grad_(False)
    key, device = fingerprint(vae), device_of(vae)
    cache.mkdir(parents=True, exist_ok=True)
    with PartialState().main_process_first():
        for pool in pools.values():
            stored = cache / f"{pool.domain}-{pool.images.shape[1]}-{len(pool)}-{key}.safetensors"
            if not stored.is_file():
                chunks = (to_tensor(pool.images[i : i + 64]).to(device) for i in range(0, len(pool), 64))
                latents = torch.cat([encode_image(vae, chunk).half().cpu() for chunk in chunks]).contiguous()
                save_file({"latents": latents}, stored)
            pool.latents = load_file(stored)["latents"]
