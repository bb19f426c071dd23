"""Quality mode: the reference goes over the most confident masks, and over nothing else; the seed decides."""

import numpy as np
import pytest
import torch

from digseg_engine import Engine
from digseg_engine.errors import BackendError, CheckpointError, UsageError
from digseg_engine.model.quality import FILE, Figures, read_quality, write_quality
from digseg_engine.model.refine import Refiner, refine_timesteps

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


class Lossless(torch.nn.Module):
    """An autoencoder that keeps every pixel: 4 x 4 blocks of the mask's first channel are its latent's 16 channels."""

    class Config:
        scaling_factor, block_out_channels = 1.0, (1, 1, 1)

    config = Config()

    def encode(self, image):
        latent = torch.nn.functional.pixel_unshuffle(image[:, :1], 4)
        return type("Encoded", (), {"latent_dist": type("Mean", (), {"mode": lambda self: latent})()})()

    def decode(self, latent):
        image = torch.nn.functional.pixel_shuffle(latent, 4).expand(-1, 3, -1, -1)
        return type("Decoded", (), {"sample": image})()


class Oracle(torch.nn.Module):
    """A denoiser that knows how to find the clean latent it is told: whatever comes in, it answers the right v."""

    def __init__(self, schedule, clean=None):
        super().__init__()
        self.schedule, self.clean, self.seen = schedule, clean, []
        self.kernel_slots = {"latent_concat": lambda z, m, prompts: m, "sampler_step": self.step}

    @staticmethod
    def step(z, m, v, *, prompts, mask_coefficient, v_coefficient):
        following = mask_coefficient * m + v_coefficient * v
        return following, following

    def forward(self, m, t, text, mask):
        self.seen.append((int(t[0]), m.clone()))
        signal, sigma = self.schedule.coefficients(t, m)
        clean = self.clean if self.clean is not None else m / signal  # without an answer: what it sees is signal
        noise = (m - signal * clean) / sigma
        return signal * noise - sigma * clean


@pytest.fixture
def refiner(nano):
    made = Refiner(nano, torch.device("cpu"))
    made.vae, made.reference = Lossless(), Oracle(made.schedule)
    return made


def masks(seed, k=3):
    return torch.from_numpy(np.random.default_rng(seed).random((k, 16, 24)) > 0.5)


def refine(refiner, logits, steps, seed=0):
    ids = torch.ones(len(logits), 4, dtype=torch.long)
    with torch.inference_mode():
        return refiner.refine(torch.zeros(1, 3, 16, 24), ids, ids.bool(), logits, steps, seed)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_an_oracle_brings_any_mask_to_the_truth(refiner, steps):
    truth = masks(1)
    refiner.reference.clean = torch.nn.functional.pixel_unshuffle(truth.float()[:, None] * 2 - 1, 4)
    found = refine(refiner, torch.zeros(3, 16, 24), steps)
    assert torch.equal(found > 0, truth)
    assert [t for t, _ in refiner.reference.seen] == refine_timesteps(steps, 1000)


def test_the_students_mask_is_what_the_reference_starts_from(refiner):
    """Noised to the middle of the schedule, the mask is still there: taking the noise away gives it back exactly."""
    start = masks(2)
    refine(refiner, start.float() * 40 - 20, 1, seed=3)
    ((t, seen),) = refiner.reference.seen
    noise = torch.randn(seen.shape[1:], generator=torch.Generator().manual_seed(3))
    signal, sigma = refiner.schedule.coefficients(torch.tensor([t]), seen)
    clean = torch.nn.functional.pixel_shuffle((seen - sigma * noise) / signal, 4)[:, 0]
    assert (clean - (start.float() * 2 - 1)).abs().max() < 1e-4


def figures(refine_student, student=0.9):
    return Figures(student, {1: 0.2}, refine_student, {1: 0.8}, 0.98, {"masks": 7})


def test_what_was_measured_to_lose_is_refused(nano_folder):
    write_quality(nano_folder, figures({1: 0.95, 4: 0.79}))
    assert read_quality(nano_folder).refine_student == {1: 0.95, 4: 0.79}
    measured = Engine.load(nano_folder, "torch", device="cpu")
    with pytest.raises(UsageError, match=r"does not help.*0\.790 with it, 0\.900 without.*7 masks.*force"):
        measured.segment(PICTURE, PROMPTS, refine=1, steps=4)
    measured.segment(PICTURE, PROMPTS, refine=1, steps=1)
    measured.segment(PICTURE, PROMPTS, refine=1, steps=4, force=True)
    (nano_folder / FILE).write_text('{"format": "digseg.quality/1"}')
    with pytest.raises(CheckpointError, match=r"cannot be read"):
        read_quality(nano_folder)


def test_equal_is_no_gain_and_figures_of_other_weights_say_nothing(nano_folder):
    with pytest.raises(UsageError, match="does not help"):
        figures({1: 0.9}).allow_refine(3)  # not measured at 3 steps: the best that was
    write_quality(nano_folder, figures({1: 0.5}))
    weights = nano_folder / "student" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert read_quality(nano_folder) is None
