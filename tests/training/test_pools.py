"""Pools of scenes: painted anew by another generator, encoded in pieces that fit, whatever the size."""

import numpy as np
import pytest
import torch

from digseg_engine.model.autoencoder import encode_image
from digseg_engine.worlds import pool as pools
from digseg_engine.worlds.sources import MOST, PIXELS, cache_latents, chunks


@pytest.mark.parametrize(("side", "together"), [(32, 64), (128, 64), (256, 16), (768, 1), (2048, 1)])
def test_pictures_are_encoded_by_so_many_pixels_at_a_time(side, together):
    images = np.broadcast_to(np.uint8(7), (together + 1, side, side, 3))
    sizes = [len(chunk) for chunk in chunks(images, torch.device("cpu"))]
    assert sizes == [together, 1] and together <= MOST and together * side * side <= max(PIXELS, side * side)


def test_pools_of_another_generator_are_not_taken(tmp_path, monkeypatch):
    first = pools.build_pool("crops", 3, 32, tmp_path, workers=1)
    monkeypatch.setattr(pools, "generator", lambda: "another")
    second = pools.build_pool("crops", 3, 32, tmp_path, workers=1)
    assert first.key != second.key and len(list(tmp_path.glob("*.npz"))) == 2


def test_latents_are_those_of_the_pictures_and_kept_per_pool(nano, tmp_path):
    pool = pools.build_pool("crops", 3, 32, tmp_path, workers=1)
    cache_latents(nano.vae, {"crops": pool}, tmp_path)
    whole = torch.cat([encode_image(nano.vae, chunk) for chunk in chunks(pool.images, torch.device("cpu"))])
    assert torch.equal(pool.latents, whole.half())
    pool.key = "another"
    cache_latents(nano.vae, {"crops": pool}, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
