"""A stage of twelve steps that trains in milliseconds: a line fitted with random numbers of all kinds in its loss."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from digseg_engine.training.loop import StageConfig, train_stage
from digseg_engine.training.recipes.finetune import FinetuneConfig

SETTINGS = StageConfig(steps=12, batch=8, learning_rate=0.05, warmup=2, ema=0.995, optimizer="muon", save_every=5)


SHORT = StageConfig(2, 2, 1e-3, prompts=3, warmup=1)  # of networks, where two steps tell enough


def short_run(**values):
    """Settings of a run of the student alone, two steps; `values` add stages and change others."""
    return FinetuneConfig(**{"scenes": 4, "imitate_every": 16, "student": SHORT, **values})


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(x)


def line_loss(model, number):
    """Also draws from torch's global generator, so that a resume without its state is noticed."""
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(number))
    value = (model(x)[:, 0] - x.sum(1)).square().mean() + 0.01 * torch.rand(()) * model(x).mean()
    return value, {"mse": float(value.detach())}


def fit(folder, loss=line_loss, resume=False, override=False, **settings):
    """Train the line and return its weights."""
    torch.manual_seed(0)
    model = Line()
    train_stage("line", model, loss, replace(SETTINGS, **settings), folder, resume, override=override)
    return model.layer.weight.detach().clone()


def failing_at(step, error):
    """The loss, but at `step` it raises `error`, or calls it when it is a function."""

    def loss(model, number):
        if number == step:
            if callable(error) and not isinstance(error, type):
                error()
            else:
                raise error
        return line_loss(model, number)

    return loss
