"""Pixels without a label: no loss sees them, and with all pixels valid nothing changes."""

import torch

from digseg_engine.training.objectives.losses import (
    dice_loss,
    latent_error,
    mask_loss,
    ranking_loss,
    shrink,
    shrink_labels,
)


def drawn(seed=0, shape=(2, 3, 8, 12)):
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=random)
    return logits, (torch.rand(shape, generator=random) > 0.6).float()


def test_all_valid_is_the_same_as_none():
    logits, target = drawn()
    everything = torch.ones(2, 1, 8, 12)
    for plain, masked in zip(mask_loss(logits, target), mask_loss(logits, target, everything)):
        torch.testing.assert_close(plain, masked)
    small, weight = shrink_labels(target, everything, torch.Size((4, 3)))
    torch.testing.assert_close(small, shrink(target, torch.Size((4, 3))))
    assert torch.equal(weight, torch.ones(2, 1, 4, 3))
    error = torch.rand(2, 4, 4, 6)
    torch.testing.assert_close(latent_error(error, None), latent_error(error, everything))


def test_ignored_pixels_change_nothing_and_get_no_gradient():
    logits, target = drawn()
    valid = torch.ones(2, 1, 8, 12)
    valid[..., 6:] = 0
    bce, dice = mask_loss(logits, target, valid)
    other_logits, other_target = logits.clone(), target.clone()
    other_logits[..., 6:], other_target[..., 6:] = 9.0, 1 - target[..., 6:]
    other_logits.requires_grad_()
    again = mask_loss(other_logits, other_target, valid)
    assert torch.equal(torch.stack([bce, dice]), torch.stack(again).detach())
    sum(again).backward()
    assert not other_logits.grad[..., 6:].any() and other_logits.grad[..., :6].all()
    cut = mask_loss(logits[..., :6], target[..., :6])
    torch.testing.assert_close(torch.stack([bce, dice]), torch.stack(cut))
    torch.testing.assert_close(dice_loss(logits, target, valid), dice_loss(logits[..., :6], target[..., :6]))


def test_a_prompt_present_only_where_nobody_knows_is_neither_present_nor_wrong():
    logits, target = torch.full((1, 1, 4, 4), -9.0), torch.zeros(1, 1, 4, 4)
    target[..., :2] = 1
    valid = torch.ones(1, 1, 4, 4)
    valid[..., :2] = 0
    bce, dice = mask_loss(logits, target, valid)
    assert float(bce) < 1e-3 and float(dice) == 0


def test_a_picture_without_a_valid_pixel_counts_nowhere():
    logits, target = drawn()
    valid = torch.ones(2, 1, 8, 12)
    valid[0] = 0
    torch.testing.assert_close(mask_loss(logits, target, valid), mask_loss(logits[1:], target[1:]))
    assert torch.isfinite(torch.stack(mask_loss(logits, target, torch.zeros(2, 1, 8, 12)))).all()


def test_cells_average_over_their_valid_pixels():
    masks, valid = torch.zeros(1, 1, 2, 4), torch.ones(1, 1, 2, 4)
    masks[0, 0, 0, :2] = 1
    valid[0, 0, 1, :2] = 0
    small, weight = shrink_labels(masks, valid, torch.Size((1, 2)))
    assert small.flatten().tolist() == [1.0, 0.0] and weight.flatten().tolist() == [0.5, 1.0]


def test_latent_cells_count_when_all_their_pixels_are_valid():
    error, valid = torch.zeros(1, 2, 2, 2), torch.ones(1, 1, 8, 8)
    error[..., 0, 0], error[..., 1, 1] = 100.0, 3.0
    valid[0, 0, 3, 3] = 0
    assert latent_error(error, valid).tolist() == [1.0]


def test_ranking_counts_labelled_pixels_and_known_rivals_only():
    logits = torch.tensor([3.0, 1.0, -2.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4).clone()
    target = torch.zeros(1, 3, 4, 4)
    target[0, 1, :2] = 1  # the second prompt holds in the upper half; the first outranks it there by 2
    rivals = torch.tensor([2.0, -3.0]).exp().sum()
    torch.testing.assert_close(ranking_loss(logits, target), torch.log1p(rivals))
    valid = torch.ones(1, 3, 4, 4)
    valid[:, 0] = 0  # nobody knows about the first prompt
    torch.testing.assert_close(ranking_loss(logits, target, valid), torch.log1p(torch.tensor(-3.0).exp()))
    assert float(ranking_loss(logits, torch.zeros_like(target))) == 0
