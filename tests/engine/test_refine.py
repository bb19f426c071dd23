"""Quality mode: the reference goes over the most confident masks, and over nothing else; the seed decides."""

import numpy as np
import pytest

from digseg_engine import Engine
from digseg_engine.errors import BackendError, UsageError
from digseg_engine.model.refine import refine_timesteps

PICTURE = np.random.default_rng(5).integers(0, 255, (64, 48, 3), np.uint8)
PROMPTS = ["red circle", "water", "a tree", "road"]


@pytest.fixture(scope="module")
def engine(nano_models):
    return Engine.load(nano_models.fp32, "onnxruntime", checkpoint=nano_models.checkpoint)


def test_only_the_most_confident_prompts_change(engine):
    plain = engine.segment(PICTURE, PROMPTS)
    better = engine.segment(PICTURE, PROMPTS, refine=2, steps=2)
    assert len(better.refined) == 2 and "refine" in better.timings and "refine" not in plain.timings
    assert np.array_equal(better.logits, plain.logits)  # the student's own answer is kept
    means = np.array([one[one > 0].mean() if (one > 0).any() else -np.inf for one in plain.logits])
    assert set(better.refined) == set(np.argsort(-means, kind="stable")[:2])
    for k in range(4):
        same = np.array_equal(better.masks[k], plain.masks[k])
        assert same == (k not in better.refined)
    assert better.as_dict()["refined"] == [PROMPTS[k] for k in better.refined]


def test_the_seed_decides(engine):
    def masks(**options):
        return engine.segment(PICTURE, PROMPTS, refine=4, **options).masks

    assert np.array_equal(masks(steps=2, seed=1), masks(steps=2, seed=1))
    assert not np.array_equal(masks(steps=2, seed=1), masks(steps=2, seed=2))
    assert not np.array_equal(masks(steps=1), masks(steps=3))


def test_timesteps_start_in_the_middle():
    assert refine_timesteps(1, 1000) == [499] and refine_timesteps(4, 1000) == [499, 374, 249, 124]
    for steps in (0, 5):
        with pytest.raises(UsageError, match="1 to 4"):
            refine_timesteps(steps, 1000)


def test_it_needs_a_checkpoint_and_sane_numbers(nano_models, engine):
    with pytest.raises(BackendError, match=r"refine needs a checkpoint.*--checkpoint"):
        Engine.load(nano_models.fp32, "onnxruntime").segment(PICTURE, PROMPTS, refine=1)
    with pytest.raises(UsageError, match="steps must be 1 to 4"):
        engine.segment(PICTURE, PROMPTS, refine=1, steps=9)
    with pytest.raises(UsageError, match="0 or more"):
        engine.segment(PICTURE, PROMPTS, refine=-1)
