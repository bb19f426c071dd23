"""Run by `accelerate launch`: fine-tunes a checkpoint on a folder of labelled pictures, with new crops and with kept
latents. Arguments: checkpoint, folder of pictures, output folder, micro-batches per step."""

import sys
from pathlib import Path

from small_stage import short_run

from digseg_engine.data.batches import FolderOptions
from digseg_engine.training.loop import StageConfig
from digseg_engine.training.recipes.finetune import finetune


def main(checkpoint: str, data: str, out: Path, accumulate: int) -> None:
    student = StageConfig(4, 2, 5e-3, prompts=3, warmup=1, accumulate=accumulate)
    for name, crops in (("new", 0), ("kept", 2)):
        settings = short_run(size=32, quality_pictures=1, folder=FolderOptions(cached_crops=crops), student=student)
        finetune(checkpoint, out / name, settings, data=data)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
