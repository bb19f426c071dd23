"""Run by `accelerate launch`: trains the line with validation and an early end. Arguments: folder, micro-batches
per step, and "shard" for weights that are divided."""

import sys
from pathlib import Path

import torch
from accelerate import PartialState
from small_stage import Colours, Line, colour_validator

from digseg_engine.training.loop import StageConfig, train_stage
from digseg_engine.training.validation import Validator


class Noting(Colours):
    """Writes down which pictures this process was asked about."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def __getitem__(self, i):
        with self.path.open("a") as file:
            file.write(f"{i}\n")
        return super().__getitem__(i)


def main(folder: Path, accumulate: int, how: str = "") -> None:
    rank = PartialState(cpu=True).process_index
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)

    def loss(module, number):
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(number))
        value = (module(x)[:, 0] - (x.sum(1) if number < 12 else -5 * x.sum(1))).square().mean()
        return value, {"mse": value.detach()}

    validator = colour_validator(losses=[loss], batches=3)
    validator = Validator(
        [Noting(folder / f"asked-{rank}.txt")], validator.predictor, validator.losses, validator.batches
    )
    config = StageConfig(
        16, 8, 0.3, warmup=2, ema=0.1, accumulate=accumulate, optimizer="adamw", validate_every=1, early_stop=3,
        shard=how == "shard",
    )  # fmt: skip
    train_stage("reference" if how else "line", Line(), loss, config, folder, False, validator=validator)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
