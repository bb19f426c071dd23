"""Run by `accelerate launch`: trains a small convolutional network and leaves its weights. Arguments: folder,
micro-batches per step, the micro-batch at which the run is killed (-1: never), "resume" or "new", and for longer runs steps
and steps between saves."""

import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import save_file
from torch import nn

from digseg_engine.training.loop import StageConfig, train_stage


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 1, 1))
        self.unused = nn.Linear(2, 2)  # a student carries weights that no output depends on

    def forward(self, x):
        return self.layers(x)


def main(folder: Path, accumulate: int, kill_at: int, resume: bool, steps: int = 8, save_every: int = 3) -> None:
    torch.manual_seed(0)
    model = Small()

    def loss(module, number):
        if number == kill_at:
            os._exit(7)
        x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(number))
        value = (module(x) - x.mean(1, keepdim=True)[..., 1:-1, 1:-1]).square().mean()
        return value, {"mse": float(value.detach())}

    config = StageConfig(
        steps, 4, 0.02, warmup=2, ema=0.9, optimizer="muon", save_every=save_every, accumulate=accumulate
    )
    train_stage("small", model, loss, config, folder, resume)
    if PartialState().is_main_process:
        save_file(model.state_dict(), folder / "weights.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "resume", *map(int, sys.argv[5:]))
