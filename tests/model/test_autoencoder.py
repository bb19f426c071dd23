"""The autoencoder: both classes behind one face, and the codec the tiny one starts from."""

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch.nn import functional as F

from digseg_engine.model.autoencoder import (
    build_autoencoder,
    decode_mask,
    encode_image,
    encode_mask,
    latent_stride,
    raw_latent,
)
from digseg_engine.model.config import TINY


@torch.no_grad()
def test_tiny_starts_as_average_pooling():
    torch.manual_seed(0)
    vae = build_autoencoder(TINY.vae)
    assert isinstance(vae, AutoencoderTiny)
    assert latent_stride(vae) == 4
    image = torch.rand(2, 3, 16, 24) * 2 - 1
    small = F.avg_pool2d(image, 4)
    latent = raw_latent(vae, image)
    assert latent.shape == (2, 4, 4, 6)
    assert (latent[:, :3] - small).abs().max() < 1e-5
    shown = vae.decode(latent).sample
    repeated = F.interpolate(torch.tanh(small / 3) * 3, scale_factor=4.0, mode="nearest")
    assert (shown - repeated).abs().max() < 1e-5


@torch.no_grad()
def test_stable_diffusions_class_uses_the_mean(nano):
    assert isinstance(nano.vae, AutoencoderKL)
    assert latent_stride(nano.vae) == 4
    image = torch.randn(1, 3, 16, 32).clamp(-1, 1)
    assert torch.equal(encode_image(nano.vae, image), encode_image(nano.vae, image))
    assert encode_image(nano.vae, image).shape == (1, 4, 4, 8)


@torch.no_grad()
@pytest.mark.parametrize("source", ["nano", "tiny"])
def test_masks_are_pictures_of_minus_one_and_one(source, request):
    vae = request.getfixturevalue(source).vae
    mask = torch.zeros(1, 16, 16)
    mask[:, 4:] = 1
    picture = (mask * 2 - 1)[:, None].expand(-1, 3, -1, -1)
    assert torch.equal(encode_mask(vae, mask), encode_image(vae, picture))
    assert decode_mask(vae, encode_mask(vae, mask)).shape == (1, 16, 16)


@torch.no_grad()
def test_bundled_autoencoder_carries_masks_and_colours(tiny):
    from digseg_engine.data.batch import to_tensor
    from digseg_engine.worlds.scenes import scene

    one = scene(5, "objects", 64, "test")
    wanted = torch.from_numpy(one.mask(one.names()[0]))[None]
    got = decode_mask(tiny.vae, encode_mask(tiny.vae, wanted.float())) > 0
    assert (got & wanted).sum() / (got | wanted).sum() > 0.9
    image = to_tensor(one.image[None])
    shown = tiny.vae.decode(raw_latent(tiny.vae, image)).sample
    assert (shown - image).abs().mean() < 0.12
