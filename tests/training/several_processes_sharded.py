"""Run by `accelerate launch`: trains a small U-Net as the stage `reference`, with its weights divided or not, and leaves its
weights; prints how many numbers the optimizer keeps in every process. Arguments: folder, micro-batch at which the run is killed
(-1: never), "resume" or "new", "shard" or "whole"."""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn

from digseg_engine.training import loop, sharding
from digseg_engine.training.loop import StageConfig, train_stage


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=8, attention_head_dim=4,
        )  # fmt: skip
        self.unused = nn.Linear(3, 2)
        self.gate = nn.Parameter(torch.tensor(0.5))  # a number without an axis, as the text pathway has

    def forward(self, x, t, text):
        return self.gate * self.unet(x, t, text).sample


def main(folder: Path, kill_at: int, resume: bool, shard: bool) -> None:
    torch.manual_seed(0)
    model, optimizers = Small(), []

    def loss(module, number):
        if number == kill_at:
            os._exit(7)
        random = torch.Generator().manual_seed(number)
        x, text = torch.randn(2, 4, 8, 8, generator=random), torch.randn(2, 3, 8, generator=random)
        value = (module(x, torch.tensor([3, 700]), text) - x.flip(1)).square().mean()
        return value, {"mse": value.detach()}

    def kept(*given, make=loop.make_optimizer):
        optimizers.append(make(*given))
        return optimizers[-1]

    loop.make_optimizer = kept
    config = StageConfig(6, 2, 0.003, warmup=2, ema=0.9, clip=0.5, save_every=2, accumulate=2, shard=shard,
                         gradient_checkpointing=True)  # fmt: skip
    train_stage("reference", model, loss, config, folder, resume)
    moments = [value for state in optimizers[0].state.values() for name, value in state.items() if name != "step"]
    numbers = sum(part.numel() for part in sharding.local(moments))
    (folder / f"moments-{PartialState().process_index}.json").write_text(json.dumps(numbers))
    if PartialState().is_main_process:
        save_file(model.state_dict(), folder / "weights.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "resume", sys.argv[4] == "shard")
