"""A stage of twelve steps that trains in milliseconds: a line fitted with random numbers of all kinds in its loss."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from digseg_engine.data.query import Query
from digseg_engine.evaluation.protocols import Sample
from digseg_engine.training.loop import StageConfig, train_stage
from digseg_engine.training.recipes.finetune import FinetuneConfig
from digseg_engine.training.validation import Validator

SETTINGS = StageConfig(steps=12, batch=8, learning_rate=0.05, warmup=2, weight_decay=0.01, clip=1.0, ema=0.995, optimizer="muon",
                       save_every=5)  # fmt: skip


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


def fit(folder, loss=line_loss, resume=False, override=False, validator=None, **settings):
    """Train the line and return its weights."""
    torch.manual_seed(0)
    model = Line()
    config = replace(SETTINGS, **settings)
    train_stage("line", model, loss, config, folder, resume, override=override, validator=validator)
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


class Colours:
    """Pictures of random colours. "bright" is where red, green and blue add up to more than half, in the top left quarter
    of every second picture alone; "dark" is nowhere."""

    name, rule, notes = "colours", "each", ()
    queries = (Query("bright", "bright"), Query("dark", "dark"))

    def __init__(self, count=5):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        image = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        truth = np.stack([image.sum(2) > 382, np.zeros((16, 16), bool)])
        valid = np.ones((16, 16), bool)
        valid[:, 8:] = i % 2 == 0
        return Sample(f"colours-{i}", image, truth, valid)


def colour_validator(seen=None, count=5, losses=(), batches=0):
    """The line asked about the colour of every pixel; it also draws random numbers of all kinds. `seen` gets the weights that
    were validated."""

    def predictor(module):
        if seen is not None:
            seen.append(module.layer.weight.detach().clone())

        def predict(image, prompts):
            torch.rand(3), np.random.rand(3), random.random()
            with torch.no_grad():
                logits = module(torch.from_numpy(image).float() / 127.5 - 1)
            return logits.permute(2, 0, 1).numpy()

        return predict

    return Validator([Colours(count)], predictor, losses, batches)
