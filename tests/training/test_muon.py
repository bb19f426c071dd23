"""The optimizer: updates are orthogonal, convolutions count as matrices, vectors take AdamW's step, state survives."""

import copy

import torch
from torch import nn

from digseg_engine.training.muon import Muon, orthogonalise


def test_orthogonalised_update_has_singular_values_about_one():
    torch.manual_seed(0)
    for shape in ((12, 40), (40, 12), (16, 16)):
        spread = torch.linalg.svdvals(orthogonalise(torch.randn(shape) @ torch.diag(torch.logspace(0, 1, shape[1]))))
        assert spread.max() < 1.4 and spread.median() > 0.6, shape


def test_vectors_take_the_step_of_adamw():
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(7))
    theirs = nn.Parameter(ours.detach().clone())
    muon = Muon([ours], lr=0.01, weight_decay=0.3)
    adam = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.0, betas=(0.9, 0.98))
    for step in range(5):
        gradient = torch.randn(7, generator=torch.Generator().manual_seed(step))
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        muon.step(), adam.step()
    assert (ours - theirs).abs().max() < 1e-6


def test_size_of_a_step_does_not_depend_on_the_size_of_the_gradient():
    def moved(scale):
        torch.manual_seed(0)
        conv = nn.Conv2d(6, 10, 3)
        before = conv.weight.detach().clone()
        conv.weight.grad = torch.randn_like(conv.weight) * scale
        Muon(conv.parameters(), lr=0.1, weight_decay=0.0).step()
        return conv.weight.detach() - before

    assert (moved(1.0) - moved(1e-3)).abs().max() < 1e-4
    assert 0.01 < moved(1.0).square().mean().sqrt() < 0.03  # 0.2 * lr


def test_saved_state_continues_the_same_run():
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(1, 4))
    x = torch.randn(2, 3, 8, 8)

    def train(model, optimizer, steps):
        for _ in range(steps):
            model(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    one = Muon(first.parameters(), lr=0.01)
    train(first, one, 3)
    second = copy.deepcopy(first)
    two = Muon(second.parameters(), lr=0.5)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    train(first, one, 2), train(second, two, 2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
