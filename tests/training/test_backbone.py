"""Backbone pretraining: labels are the scenes' own, regions are described by their own pixels, a step lowers the loss."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from digseg_engine.training.loop import StageConfig
from digseg_engine.training.muon import Muon
from digseg_engine.training.objectives.dense import (
    PRIMITIVES,
    Backbone,
    BackboneLoss,
    dense_loss,
    pool_regions,
)
from digseg_engine.training.objectives.learner import Learner
from digseg_engine.training.objectives.student import DistillationLoss
from digseg_engine.worlds.pool import INDEX, MAX_REGIONS, NAMES, Pool, SceneBatches, build_pool, look_alikes
from digseg_engine.worlds.scenes import ALL_PAIRS, UNSEEN_PAIRS


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    pool = build_pool("objects", 12, 64, tmp_path_factory.mktemp("pools"), workers=1)
    pool.latents = torch.randn(12, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    return SceneBatches({"objects": pool}, {"objects": 1.0}, seed=0)


def test_pairs_are_left_to_language():
    assert not set(PRIMITIVES) & set(ALL_PAIRS)
    assert {"red", "star", "gravel", "crop row"} <= set(PRIMITIVES)


def pool_of(*regions):
    """One scene of 8 x 8 pixels, a row for every region; each is named like "red star"."""
    members = np.zeros((1, 1 + MAX_REGIONS, len(NAMES)), bool)
    ids = np.zeros((1, 8, 8), np.uint8)
    for number, name in enumerate(regions, 1):
        members[0, number, [INDEX[word] for word in (name, *name.split()) if word in INDEX]] = True
        ids[0, number - 1] = number
    return Pool("objects", np.zeros((1, 8, 8, 3), np.uint8), ids, members)


def test_a_colour_and_a_shape_that_never_meet_say_nothing_about_each_other():
    pool = pool_of("red star", "blue ring", "blue star")
    known = pool.known(np.arange(1), ["ring", "star", "red", "blue", "red ring"])[0, :, :4, 0]
    assert known[0].tolist() == [0, 1, 1, 1]  # no ring is red here: whether the red star is a ring nobody says
    assert known[1].tolist() == [1, 1, 1, 1]  # stars come in both colours
    assert known[2].tolist() == [1, 0, 1, 1] and known[3].tolist() == [1, 1, 1, 1]
    assert known[4].all()  # of a pair everything is known
    assert pool.known(np.arange(1), ["red star", "blue ring"]) is None


def test_what_is_not_told_is_read_off_the_pictures_not_off_the_test(tmp_path):
    pool = build_pool("objects", 300, 32, tmp_path, workers=1)
    never = {tuple(sorted((NAMES[i], NAMES[j]))) for i, j in np.argwhere(pool.untold)}
    assert never == {tuple(sorted(pair.split())) for pair in UNSEEN_PAIRS}  # 300 scenes show every pair that is drawn
    without = replace(pool, members=pool.members & ~pool.members[..., [INDEX["black cross"]]])
    gone = {tuple(sorted((NAMES[i], NAMES[j]))) for i, j in np.argwhere(without.untold)}
    assert gone - never == {("black", "cross")}


def test_what_nobody_knows_costs_nothing(batches):
    _, drawn = batches.draw(3, 4)
    column = PRIMITIVES.index("ring")
    loss = BackboneLoss(batches, StageConfig(1, 4, 1e-3))
    answer = torch.zeros(4, len(PRIMITIVES), 64, 64)
    changed = answer.clone()
    red = drawn.pool.masks(drawn.index, ["red"])[:, 0]
    changed[:, column] += 5 * red
    assert red.any()
    torch.testing.assert_close(loss(Fixed(answer), 3)[0], loss(Fixed(changed), 3)[0])


def test_a_perfect_answer_costs_almost_nothing_and_the_opposite_much(batches):
    _, drawn = batches.draw(3, 4)
    masks = torch.zeros(4, len(PRIMITIVES), 16, 16)
    own = [i for i, name in enumerate(PRIMITIVES) if drawn.pool.members[:, :, INDEX[name]].any()]
    truth = drawn.pool.masks(drawn.index, [PRIMITIVES[i] for i in own])
    masks[:, own] = torch.nn.functional.avg_pool2d(truth, 4)
    sure = (masks.clamp(1e-4, 1 - 1e-4)).logit()
    loss = BackboneLoss(batches, StageConfig(1, 4, 1e-3))
    right, wrong = (loss(Fixed(x), 3)[0].item() for x in (sure, -sure))
    assert right < 0.6 < 5 < wrong  # soft borders keep the perfect answer above zero


class Fixed(torch.nn.Module):
    """Answers the same whatever it is asked."""

    def __init__(self, answer):
        super().__init__()
        self.answer = torch.nn.Parameter(answer)

    def forward(self, images, latents):
        return self.answer


def test_training_lowers_the_loss(batches, nano):
    torch.manual_seed(0)
    model = Backbone(nano.student).train()
    model.requires_grad_(True)
    loss, optimizer = BackboneLoss(batches, StageConfig(1, 8, 1e-3)), Muon(model.parameters(), lr=5e-3)
    values = []
    for _ in range(12):
        value, _ = loss(model, 0)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(float(value.detach()))
    assert values[-1] < 0.9 * values[0]
    nano.student.eval().requires_grad_(False)


def test_pooled_regions_are_means_under_the_mask():
    fine, coarse = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 4, 4)
    masks = torch.zeros(2, 16, 16)
    masks[0, :4, :4] = 1  # two by two pixels of the fine map, one of the coarse
    masks[1] = 1
    got = pool_regions([coarse, fine], masks)
    assert got.shape == (2, 6)
    assert torch.allclose(got[0], torch.cat([coarse[0, :, 0, 0], fine[0, :, :2, :2].mean((1, 2))]), atol=1e-6)
    assert np.allclose(got[1, 3:], fine[1].mean((1, 2)), atol=1e-5)


def test_look_alikes_are_present_pairs_of_few_colours():
    rng, present = (
        np.random.default_rng(0),
        ["red star", "red cross", "blue ring", "blue cross", "white ring", "red", "star"],
    )
    for _ in range(20):
        chosen = look_alikes(rng, present, 4)
        assert len(chosen) == 4 and set(chosen) <= set(present[:5])
        assert len({name.split()[0] for name in chosen}) <= 3
    assert look_alikes(rng, ["red", "star"], 4) == ["red", "star"]


def test_a_tutored_student_answers_as_the_student_and_every_weight_learns(batches, nano):
    model = Learner(nano.student, dense=True).train().requires_grad_(True)
    parts = (nano.vae, nano.text_encoder, nano.tokenizer, nano.reference, nano.schedule)
    loss = DistillationLoss(batches, *parts, StageConfig(1, 4, 1e-3, prompts=3), every=10**9)
    value, figures = loss(model, 0)
    alone, plain = loss(nano.student, 0)
    expected = {**plain, "dense": figures["dense"]}
    assert {k: float(v) for k, v in expected.items()} == pytest.approx({k: float(v) for k, v in figures.items()})
    dense, _ = dense_loss(model.classify(described(model, batches)), batches.batch(0, 4, 3).drawn)
    assert float((value - alone).detach()) == pytest.approx(float(dense.detach()), rel=1e-3)
    value.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.classify.parameters())
    nano.student.eval().requires_grad_(False)


def described(model, batches):
    batch = batches.batch(0, 4, 3)
    return model.student.describe(batch.images, batch.latents)[0]
