"""Every loss against an answer known beforehand: an oracle that is right costs nothing, and one that is wrong does."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from digseg_engine.data.batch import Batch, Planes
from digseg_engine.data.query import Query
from digseg_engine.data.wordings import encode_text, typical_tokens
from digseg_engine.model.autoencoder import decode_value, draw_mask, encode_mask
from digseg_engine.model.sampler import Schedule, sample
from digseg_engine.training.loop import StageConfig
from digseg_engine.training.objectives.alignment import AlignmentLoss, TextAlignment
from digseg_engine.training.objectives.autoencoder import AutoencoderLoss
from digseg_engine.training.objectives.denoising import MIN_SNR, DenoisingLoss, noise_weights
from digseg_engine.training.objectives.few_step import FewStepLoss
from digseg_engine.training.objectives.losses import mask_loss, ranking_loss, shrink_labels
from digseg_engine.training.objectives.noise import draw_noise, generator
from digseg_engine.training.objectives.one_step import SHARPNESS, OneStepLoss
from digseg_engine.training.objectives.pairs import PairSource
from digseg_engine.training.objectives.student import DistillationLoss

NAMES = ("left", "right", "top", "bottom", "moon")  # the moon is in no picture
SIDE = 32
SETTINGS = StageConfig(4, 4, 1e-3, prompts=5, warmup=1)


def half(name):
    """The mask [S, S] that a name stands for."""
    mask = torch.zeros(SIDE, SIDE)
    where = {
        "left": np.s_[:, : SIDE // 2],
        "right": np.s_[:, SIDE // 2 :],
        "top": np.s_[: SIDE // 2],
        "bottom": np.s_[SIDE // 2 :],
    }
    if name in where:
        mask[where[name]] = 1
    return mask


class Halves:
    """Batches in which a prompt's name alone says its mask; pictures are noise."""

    names = NAMES

    def __init__(self, seed=0):
        self.seed = seed

    def batch(self, step, size, prompts):
        random = torch.Generator().manual_seed(step)
        images, latents = (
            torch.rand(size, 3, SIDE, SIDE, generator=random),
            torch.randn(size, 4, 8, 8, generator=random),
        )
        names = [NAMES[i % len(NAMES)] for i in range(prompts)]
        masks = torch.stack([half(name) for name in names]).expand(size, -1, -1, -1)
        return Batch(images, latents, [Query(name, name) for name in names], Planes(masks))

    def phrase(self, rng, name):
        return Query(name, name)


@pytest.fixture
def nano(nano):
    """The untrained model, its latents scaled until those of different masks are about 1 apart."""
    cleans = encode_mask(nano.vae, torch.stack([half(name) for name in NAMES]))
    factor = nano.vae.config.scaling_factor / float((cleans - cleans.mean(0)).std())
    nano.vae.register_to_config(scaling_factor=factor)
    return nano


@pytest.fixture
def pairs(nano):
    return PairSource(Halves(), nano.vae, nano.text_encoder, nano.tokenizer, SETTINGS)


class Knowing(nn.Module):
    """Stands in the reference's place: told the text it is asked with, answers with `answer(clean of that text, slot, t)`."""

    def __init__(self, nano, answer):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))
        self.answer = answer
        self.texts, _ = encode_text(nano.text_encoder, nano.tokenizer, list(NAMES))
        self.cleans = encode_mask(nano.vae, torch.stack([half(name) for name in NAMES]))

    def forward(self, both, t, text, mask):
        length = min(text.shape[1], self.texts.shape[1])
        distances = torch.cdist(text[:, :length].flatten(1), self.texts[:, :length].flatten(1))
        return self.answer(self.cleans[distances.argmin(1)], both[:, 4:], t) + self.anchor


def true_velocity(schedule):
    """v of a clean latent seen as a noisy one; at the last timestep, from the zero slot, minus the latent itself."""

    def answer(clean, noisy, t):
        signal, sigma = schedule.coefficients(t, noisy)
        return (signal * noisy - clean) / sigma

    return answer


def test_denoising_costs_nothing_to_who_knows_the_mask_of_every_text(nano, pairs):
    loss = DenoisingLoss(pairs, nano.schedule)
    right = Knowing(nano, true_velocity(nano.schedule))
    assert all(float(loss(right, step)[0].detach()) < 1e-4 for step in range(6))
    for factor in (-1.0, 0.0, 2.0):
        wrong = Knowing(nano, lambda clean, noisy, t, f=factor: f * true_velocity(nano.schedule)(clean, noisy, t))
        assert all(float(loss(wrong, step)[0].detach()) > 1e-2 for step in range(6))


def test_one_step_costs_what_its_best_answer_must_and_counts_bce_dice_and_latent(nano, pairs):
    values = []
    for weight in (0.0, 0.5):
        loss = OneStepLoss(pairs, nano.schedule, latent_weight=weight)
        seen = {}

        def zeros(clean, slot, t, seen=seen):
            seen["slot"], seen["t"] = slot, t
            return torch.zeros_like(clean)

        values.append(float(loss(Knowing(nano, zeros), 3)[0].detach()))
        assert not seen["slot"].any() and bool((seen["t"] == len(nano.schedule) - 1).all())
    drawn = pairs.draw(3, generator(0, 3), torch.device("cpu"))
    answered = SHARPNESS * decode_value(nano.vae, torch.zeros_like(drawn.clean))
    bce, dice = mask_loss(answered[:, None], drawn.masks[:, None])
    assert float(bce) > 0.1 and float(dice) > 0.1
    assert values[0] == pytest.approx(float(2 * bce + dice), rel=1e-4)
    assert values[1] - values[0] == pytest.approx(0.5 * float(drawn.clean.square().mean((1, 2, 3)).mean()), rel=1e-3)


def test_a_sure_and_wrong_pixel_has_a_gradient_of_common_size(nano, pairs, monkeypatch):
    """Where the decoder says -1 (or less) and the truth is inside, and the other way round."""
    loss = OneStepLoss(pairs, nano.schedule, latent_weight=0.0)
    drawn = pairs.draw(3, generator(0, 3), torch.device("cpu"))
    value = (1 - 2 * drawn.masks).mul(1.001).requires_grad_(True)  # every pixel sure and wrong
    monkeypatch.setattr("digseg_engine.training.objectives.one_step.decode_value", lambda vae, latent: value)
    loss(Knowing(nano, lambda clean, slot, t: torch.zeros_like(clean)), 3)[0].backward()
    right = value.grad.sign() == -(2 * drawn.masks - 1).sign()  # towards the truth
    present = drawn.masks.amax((1, 2)) > 0.5
    assert bool(right[present].all()) and float(value.grad.abs().max()) < 100 * float(value.grad[present].abs().min())


def test_networks_that_predict_noise_learn_alike_at_every_timestep(nano):
    """An equal error of the noise weighs as much at t = 999 as at t = 500, and less only where there is little noise."""
    schedule = Schedule.scaled_linear()
    t = torch.arange(1000)
    from_v = 1 / schedule.alpha_bar.float()  # an error of 1 of the noise, as an error of v
    assert float(from_v[999] / from_v[0]) > 200
    weighed = from_v * noise_weights(schedule, t)
    snr = schedule.alpha_bar / (1 - schedule.alpha_bar)
    assert torch.allclose(weighed[snr < MIN_SNR], torch.ones(()), atol=1e-5) and bool((weighed <= 1 + 1e-5).all())
    assert float(weighed[10]) < 0.2


@pytest.mark.parametrize(("late", "middle"), [(0.5, 2 / 3), (1.0, 0.5), (2.0, 1 / 3)])
def test_timesteps_are_drawn_as_the_power_says(nano, pairs, late, middle):
    """The mean of u ** p is 1 / (1 + p): noisy timesteps more often below 1, all alike at 1."""
    seen = []

    def answer(clean, noisy, t):
        seen.extend(t[noisy.abs().amax((1, 2, 3)) > 0].tolist())  # those that do not see the zero slot
        return torch.zeros_like(clean)

    loss = DenoisingLoss(pairs, nano.schedule, late=late)
    for step in range(150):
        loss(Knowing(nano, answer), step)
    share = torch.tensor(seen) / len(nano.schedule)
    assert len(seen) > 250 and float(share.mean()) == pytest.approx(middle, abs=0.06)


def test_denoising_weighs_only_networks_that_predict_noise(nano, pairs):
    off = Knowing(nano, lambda clean, noisy, t: true_velocity(schedule)(clean, noisy, t) + 1)
    schedule = Schedule.scaled_linear()
    plain = [float(DenoisingLoss(pairs, schedule)(off, step)[0].detach()) for step in range(4)]
    off.noise_schedule = schedule
    weighed = [float(DenoisingLoss(pairs, schedule)(off, step)[0].detach()) for step in range(4)]
    assert all(0 < small < 0.9 * large for small, large in zip(weighed, plain))


def test_coarse_noise_is_of_unit_variance_correlated_far_and_plain_where_there_is_little(nano):
    shape, share = torch.Size((64, 4, 16, 16)), torch.ones(64)
    plain = draw_noise("gaussian", shape, generator(0, 1), share)
    assert torch.equal(plain, torch.randn(shape, generator=generator(0, 1)))
    coarse = draw_noise("multi-resolution", shape, generator(0, 1), share)
    assert float(coarse.var()) == pytest.approx(1, abs=0.1)
    blocks = [F.avg_pool2d(noise, 4).var() * 16 for noise in (plain, coarse)]  # 1 for independent cells
    assert float(blocks[0]) == pytest.approx(1, abs=0.15) and float(blocks[1]) > 4
    assert torch.equal(draw_noise("multi-resolution", shape, generator(0, 1), 0 * share), plain)


def test_one_step_latent_error_is_nothing_for_the_right_latent(nano, pairs):
    with_latent, without = (OneStepLoss(pairs, nano.schedule, latent_weight=w) for w in (1.0, 0.0))
    right = Knowing(nano, true_velocity(nano.schedule))
    for step in range(3):
        assert float((with_latent(right, step)[0] - without(right, step)[0]).detach()) == pytest.approx(0, abs=1e-3)


def test_few_step_distillation_costs_nothing_to_who_knows_what_the_teacher_says(nano, pairs):
    teacher = Knowing(nano, true_velocity(nano.schedule))
    loss = FewStepLoss(pairs, teacher, nano.schedule, teacher_steps=4, grid=(1, 2))
    for step in range(6):
        assert float(loss(teacher, step)[0].detach()) < 1e-4
        for shift in (-0.1, 0.1):
            moved = Knowing(nano, lambda clean, noisy, t, s=shift: true_velocity(nano.schedule)(clean + s, noisy, t))
            assert float(loss(moved, step)[0].detach()) == pytest.approx(0.01, rel=1e-2)


class Answering(nn.Module):
    """Stands in the student's place: gives logits of its own whatever is asked."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def fold_text(self, text, mask):
        return None

    def forward(self, images, latents, folded):
        return self.logits


def distillation(nano, **options):
    parts = (nano.vae, nano.text_encoder, nano.tokenizer)
    return DistillationLoss(
        Halves(), *parts, options.pop("reference", nano.reference), nano.schedule, SETTINGS, **options
    )


def test_the_students_loss_is_twice_bce_plus_dice_plus_half_the_ranking(nano):
    logits = torch.randn(4, 5, 16, 16, generator=torch.Generator().manual_seed(1))
    loss, parts = distillation(nano, every=0)(Answering(logits), 0)
    batch = Halves().batch(0, 4, 5)
    labels = shrink_labels(batch.masks, None, logits.shape[-2:])
    (bce, dice), rank = mask_loss(logits, *labels), ranking_loss(logits, *labels)
    assert float(rank) > 0.1
    assert float(loss) == pytest.approx(float(2 * bce + dice + 0.5 * rank), rel=1e-5)
    assert {name: float(value) for name, value in parts.items()} == pytest.approx(
        {"bce": float(bce), "dice": float(dice), "rank": float(rank)}
    )


def test_imitation_pulls_towards_the_teachers_mask_and_away_from_its_opposite(nano, monkeypatch):
    """The teacher knows every text's mask, so its soft masks are those of the latents decoded."""
    teacher = Knowing(nano, true_velocity(nano.schedule))
    monkeypatch.setattr("digseg_engine.training.objectives.student.decode_mask", ideal_decoder(nano))
    truth = torch.stack([half(name) for name in NAMES]).expand(4, -1, -1, -1)
    logits = F.avg_pool2d(truth, 2) * 16 - 8
    loss = distillation(nano, reference=teacher, every=1, teacher_steps=2)
    values = [loss(Answering(sign * logits), 0)[1]["imitation"] for sign in (1, -1)]
    assert values[0] < 0.05 and values[1] > 3
    whole, alone = (distillation(nano, reference=teacher, every=n)(Answering(-logits), 0) for n in (1, 0))
    assert float((whole[0] - alone[0]).detach()) == pytest.approx(0.5 * float(whole[1]["imitation"]), rel=1e-3)
    assert "imitation" not in alone[1]


def ideal_decoder(nano):
    """What a perfect autoencoder makes of the latents of the known masks (the nano one is untrained)."""
    cleans = encode_mask(nano.vae, torch.stack([half(name) for name in NAMES]))

    def decode(vae, latent):
        nearest = torch.cdist(latent.flatten(1), cleans.flatten(1)).argmin(1)
        return torch.stack([half(NAMES[int(i)]) for i in nearest]) * 16 - 8

    return decode


def test_a_teacher_that_is_wrong_is_not_imitated(nano, monkeypatch):
    monkeypatch.setattr(
        "digseg_engine.training.objectives.student.decode_mask", lambda vae, m: -ideal_decoder(nano)(vae, m)
    )
    teacher = Knowing(nano, true_velocity(nano.schedule))
    logits = torch.zeros(4, 5, 16, 16)
    assert distillation(nano, reference=teacher, every=1)(Answering(logits), 0)[1]["imitation"] < 0.3 * math.log(2)


def test_text_alignment_falls_when_phrases_meet_their_own_regions(nano):
    """Logits of the right sign everywhere cost less than random ones, and those of the wrong sign cost more."""

    class Told(nn.Module):
        def __init__(self, sign):
            super().__init__()
            self.anchor, self.sign = nn.Parameter(torch.zeros(())), sign

        def forward(self, regions, ids, mask):
            count = len(ids) - 1  # the moon covers nothing
            own = torch.eye(count).repeat(len(regions) // count, 1)
            covered = F.pad(own, (0, 1))
            return self.sign * (covered * 16 - 8) + self.anchor

    loss = AlignmentLoss(Halves(), nano.student, nano.tokenizer, SETTINGS)
    values = {sign: loss(Told(sign), 0) for sign in (1, 0, -1)}
    assert float(values[1][0]) < 0.01 and float(values[0][0]) == pytest.approx(5 * math.log(2), rel=1e-4)
    assert float(values[-1][0]) > 30
    assert values[1][1]["missed"] == 0 and values[-1][1]["missed"] == 1


def test_text_alignment_brings_phrase_and_region_together(nano):
    torch.manual_seed(0)
    model = TextAlignment(nano.text_encoder.requires_grad_(True), region_width=8, dim=16)
    regions = torch.eye(8)[:4]
    ids = torch.tensor([[0, 5 + k, 1] for k in range(4)])
    mask = torch.ones(4, 3, dtype=torch.bool)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        logits = model(regions, ids, mask)
        F.binary_cross_entropy_with_logits(logits, torch.eye(4)).backward()
        optimizer.step()
    found = model(regions, ids, mask)
    assert bool((found.diagonal() > 0).all()) and bool((found.argmax(1) == torch.arange(4)).all())


def test_the_autoencoder_is_asked_for_what_it_was_given(nano):
    class Perfect(nn.Module):
        """Answers with its own input, shifted."""

        def __init__(self, shift):
            super().__init__()
            self.shift = nn.Parameter(torch.tensor(shift).view(1, -1, 1, 1))
            self.config = nano.vae.config

        def encode(self, x):
            return type("Encoded", (), {"latent_dist": type("D", (), {"mode": lambda self: x})()})()

        def decode(self, z):
            return type("Decoded", (), {"sample": z + self.shift})()

    loss = AutoencoderLoss(Halves(), StageConfig(1, 8, 1e-3))
    assert float(loss(Perfect([0.0, 0.0, 0.0]), 0)[0].detach()) == 0
    grey = float(loss(Perfect([0.1, 0.1, 0.1]), 0)[0].detach())
    assert grey == pytest.approx(0.11, rel=1e-3)  # 0.1 + 0.1^2, and nothing for the colour
    assert float(loss(Perfect([0.1, -0.1, 0.0]), 0)[0].detach()) == pytest.approx(3 * (0.2 + 0.02) / 3, rel=1e-3)


def test_whitened_words_have_no_strong_directions(nano):
    tokens = typical_tokens(nano.text_encoder, nano.tokenizer, NAMES, Halves().phrase)
    nano.student.set_whitening(tokens, floor=1e-6)
    white = (tokens - nano.student.text_centre) @ nano.student.text_whiten
    variances = torch.linalg.eigvalsh(torch.cov(white.T, correction=0))
    assert float(white.mean(0).abs().max()) < 1e-3
    assert float(variances.max()) == pytest.approx(1.0, abs=0.05)
    assert float(torch.cov(tokens.T, correction=0).trace()) != pytest.approx(float(variances.sum()), rel=0.1)


def test_masks_are_drawn_as_pictures_of_minus_and_plus_one():
    assert sorted(draw_mask(half("left")[None]).unique().tolist()) == [-1, 1]


def test_the_sampler_reaches_what_the_oracle_knows(nano):
    known = Knowing(nano, true_velocity(nano.schedule))
    text, mask = encode_text(nano.text_encoder, nano.tokenizer, ["left", "moon"])
    for steps in (1, 3):
        noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        found = sample(lambda both, t: known(both, t, text, mask), torch.zeros(2, 4, 8, 8), nano.schedule, steps, noise)
        torch.testing.assert_close(found.detach(), known.cleans[[0, 4]], atol=1e-4, rtol=1e-3)


def test_noise_is_of_the_runs_seed_and_of_the_number():
    drawn = {(s, n): torch.rand(4, generator=generator(s, n)).tolist() for s in (0, 1) for n in (0, 1)}
    assert len({tuple(values) for values in drawn.values()}) == 4
    assert torch.rand(4, generator=generator(0, 1)).tolist() == drawn[0, 1]
