"""Every GPU path end to end, for a machine with an NVIDIA GPU: `python -m pytest -m gpu tests`. Skipped elsewhere."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from digseg_engine import Engine
from digseg_engine.errors import BackendError
from digseg_engine.runtime.backends import kinds
from digseg_engine.runtime.choice import check_golden, within_limits

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")]
NAMES = ("onnxruntime-cuda", "onnxruntime-tensorrt", "torch", "torch-compile", "torch-fp16")
PROMPTS = ["red circle", "water", "a tree"]
PICTURE = np.random.default_rng(5).integers(0, 255, (64, 48, 3), np.uint8)


@pytest.fixture(scope="module", params=NAMES)
def engine(request, nano_models):
    usable = kinds()[request.param].probe()
    if not usable.usable:
        pytest.skip(usable.reason)
    return Engine.load(nano_models.fp32, request.param, checkpoint=nano_models.checkpoint, device="cuda:0")


def test_it_is_right(engine):
    golden = engine.source.golden.allowing(engine.backend.precision)
    assert within_limits(*check_golden(engine.backend, golden), golden) == (True, "")


def test_tensors_on_the_device_from_two_streams_and_four_threads(engine):
    if not hasattr(engine.backend, "decode_tensor"):
        pytest.skip("takes arrays only")
    pixels = torch.rand(1, 64, 48, 3, device="cuda").permute(0, 3, 1, 2) * 2 - 1  # not contiguous
    engine.logits(pixels, PROMPTS)
    want = engine.logits(pixels, PROMPTS).cpu()

    def ask(number):
        with torch.cuda.stream(torch.cuda.Stream()):
            others = torch.rand_like(pixels)
            engine.logits(others if number % 2 else pixels, PROMPTS)
            return engine.logits(pixels, PROMPTS).cpu()

    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(ask, range(40)):
            assert torch.allclose(got, want, atol=1e-3)


def test_a_label_map_stays_on_the_device(engine):
    if not hasattr(engine.backend, "decode_tensor"):
        pytest.skip("takes arrays only")
    pixels = torch.rand(2, 3, 64, 48, device="cuda") * 2 - 1
    labels = engine.label_map(pixels, PROMPTS, (96, 72))
    full = torch.nn.functional.interpolate(engine.logits(pixels, PROMPTS).float(), (96, 72), mode="bilinear")
    best, winner = full.max(1)
    assert labels.is_cuda and (labels != torch.where(best > 0, winner + 1, 0)).float().mean() < 1e-3


def test_refine(nano_models):
    found = [
        Engine.load(nano_models.checkpoint, "torch", device=device).segment(PICTURE, PROMPTS, refine=3, steps=2, seed=1)
        for device in ("cpu", "cuda:0")
    ]
    assert (found[0].masks == found[1].masks).mean() > 0.99


def test_a_gpu_that_is_not_there_is_an_error(nano_models):
    for name in ("torch", "onnxruntime-cuda"):
        with pytest.raises(BackendError):
            Engine.load(nano_models.fp32, name, checkpoint=nano_models.checkpoint, device="cuda:99")
