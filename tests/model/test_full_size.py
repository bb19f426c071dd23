"""The `sd21` preset at its full size: counts and shapes without memory (meta device), and once with real weights."""

import sys

import pytest
import torch
from programs import run_program

from digseg_engine.model.autoencoder import encode_image
from digseg_engine.model.config import SD21
from digseg_engine.model.pretrained import build

# Stable Diffusion 2.1's own networks (U-Net 865,910,724 and 11,520 weights for the four mask channels), then ours.
WEIGHTS = {
    "unet": 865_922_244, "vae": 83_653_863, "text_encoder": 340_387_840, "pathway": 14_801_796, "student": 870_079_500,
}  # fmt: skip
LOADED = (sum(WEIGHTS.values()) * 4) / 1e9  # GB in float32: 8.70
PROGRAM = """
import resource, time, torch
from digseg_engine.model.config import SD21
from digseg_engine.model.pretrained import build
began = time.perf_counter()
c = build(SD21, None)
weights = sum(p.numel() for m in (c.vae, c.text_encoder, c.reference, c.student) for p in m.parameters())
with torch.no_grad():
    answer = c.reference(torch.randn(1, 8, 8, 8), torch.tensor([999]), torch.randn(1, 4, 1024))
assert answer.isfinite().all() and answer.shape == (1, 4, 8, 8)
print(weights, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, round(time.perf_counter() - began, 1))
"""


@pytest.fixture(scope="module")
def hollow():
    """The whole checkpoint, without a byte of weights."""
    with torch.device("meta"):
        return build(SD21, None)


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_every_part_has_the_published_number_of_weights(hollow):
    parts = {
        "unet": hollow.reference.unet, "vae": hollow.vae, "text_encoder": hollow.text_encoder,
        "pathway": hollow.reference.pathway, "student": hollow.student,
    }  # fmt: skip
    assert {name: count(part) for name, part in parts.items()} == WEIGHTS
    assert hollow.reference.unet.conv_in.weight.shape == (320, 8, 3, 3)
    assert hollow.stride == 64 and hollow.student.strides == [4, 2, 1, 1]


def test_a_full_size_picture_goes_through(hollow):
    with torch.device("meta"):
        image, text, mask = torch.empty(1, 3, 768, 512), torch.empty(3, 5, 1024), torch.ones(3, 5, dtype=torch.bool)
        z = encode_image(hollow.vae, image)
        assert z.shape == (1, 4, 96, 64)
        assert hollow.student(image, z, hollow.student.fold_text(text, mask)).shape == (1, 3, 192, 128)
        v = hollow.reference(torch.cat([z, z], 1), torch.zeros(1, dtype=torch.long), text[:1], mask[:1])
        assert v.shape == z.shape


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read in Linux's unit")
def test_built_with_real_weights_it_holds_them_once():
    done = run_program([sys.executable, "-c", PROGRAM])
    assert done.returncode == 0, done.stderr[-3000:]
    weights, peak = (int(word) for word in done.stdout.split()[:2])
    print(f"peak {peak / 1e9:.2f} GB for {LOADED:.2f} GB of weights, {done.stdout.split()[2]} s")
    assert weights == sum(WEIGHTS.values())
    assert LOADED < peak / 1e9 < LOADED + 1.3  # the libraries take about half a gigabyte
