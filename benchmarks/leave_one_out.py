"""A domain the model has never seen, before and after 100 pictures of it: python benchmarks/leave_one_out.py -o FOLDER

Trains `digseg-tiny` from nothing without one domain in any stage (shortened by --scale), scores it on that domain,
fine-tunes the student on a handful of the domain's pictures as `digseg train --init --student-only` does, and scores it
again. Nothing of the architecture changes: the new names are prompts like any other. The tokenizer has seen the
domain's words, as CLIP's has; no picture, mask or aligned text of the domain was. An interrupted run goes on where it
was.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from digseg_engine.evaluation.panel import panel
from digseg_engine.evaluation.predictors import student_predictor
from digseg_engine.evaluation.samples import TestScenes
from digseg_engine.evaluation.score import evaluate
from digseg_engine.model.pretrained import load_checkpoint
from digseg_engine.runtime.machine import processor
from digseg_engine.training.loop import StageConfig
from digseg_engine.training.recipes.finetune import FinetuneConfig, finetune
from digseg_engine.training.recipes.tiny import TrainConfig, train
from digseg_engine.training.run import scaled, stages_of
from digseg_engine.worlds.scenes import DOMAINS

RESULTS = Path(__file__).with_name("results")


def score(folder: Path, domain: str, scenes: int) -> tuple[dict[str, float], Image.Image]:
    """Mean IoU on the domain and IoU per name, and a panel of telling pictures."""
    c = load_checkpoint(folder)
    predict, samples = student_predictor(c), TestScenes(domain, scenes, c.config.image_size)
    found = evaluate(predict, samples)
    figures = {
        "mIoU": found.together.miou(), "mIoU, each prompt alone": found.alone.miou(),
        "false area, each prompt alone": found.alone.false_area(), **found.together.iou(),
    }  # fmt: skip
    return {name: round(value, 4) for name, value in figures.items()}, panel([samples], {domain: found}, predict)


def settings_without(scale: float, compiled: bool) -> TrainConfig:
    config = scaled(TrainConfig(), scale)
    stages: dict[str, Any] = {
        name: replace(stage, compile=stage.compile and compiled) for name, stage in stages_of(config).items()
    }
    return replace(config, **stages)


def minutes(checkpoint: Path) -> float:
    """What a run took, from its own logs."""
    made = json.loads((checkpoint / "training" / "made.json").read_text())
    return round(made["seconds"]["total"] / 60, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--report", type=Path, default=RESULTS / "leave-one-out.json", help="figures, with a .png")
    parser.add_argument("--domain", choices=DOMAINS, default="crops")
    parser.add_argument("--pictures", type=int, default=100, help="pictures to fine-tune on")
    parser.add_argument("--steps", type=int, default=300, help="fine-tuning steps")
    parser.add_argument("--scale", type=float, default=0.2, help="length of the training without the domain")
    parser.add_argument("--scenes", type=int, default=200, help="test scenes")
    parser.add_argument("--no-compile", action="store_true", help="never torch.compile, for short trials")
    a = parser.parse_args()
    others = "scenes:" + ",".join(d for d in DOMAINS if d != a.domain)
    settings = settings_without(a.scale, not a.no_compile)
    without = train("tiny", a.output / "without", settings, resume=True, data=others)
    before, first = score(without, a.domain, a.scenes)
    stage = StageConfig(a.steps, 8, 2e-3, prompts=8, warmup=min(20, a.steps), ema=0.98)
    tuning = replace(FinetuneConfig(), scenes=a.pictures, student=stage)
    tuned = finetune(str(without), a.output / "tuned", tuning, True, f"scenes:{a.domain}", student_only=True)
    after, second = score(tuned, a.domain, a.scenes)
    with (a.output / "tuned" / "student" / "log.csv").open(newline="") as file:
        curve = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    body = {
        "command": " ".join(["python", "benchmarks/leave_one_out.py", *sys.argv[1:]]), "domain": a.domain,
        "trained_on": others, "scale": a.scale, "pictures": a.pictures, "steps": a.steps, "test_scenes": a.scenes,
        "before": before, "after": after, "training_minutes": minutes(without), "tuning_minutes": minutes(tuned),
        "torch": torch.__version__, "machine": {"processor": processor(), "threads": torch.get_num_threads()},
        "curve": curve,
    }  # fmt: skip
    a.report.write_text(json.dumps(body, indent=2) + "\n")
    sheet = Image.new("RGB", (first.width, first.height + second.height), "white")
    for top, picture in ((0, first), (first.height, second)):
        sheet.paste(picture.convert("RGB"), (0, top))
    sheet.quantize(256, dither=Image.Dither.NONE).save(a.report.with_suffix(".png"), optimize=True)
    print(json.dumps({key: value for key, value in body.items() if key != "curve"}, indent=2))


if __name__ == "__main__":
    main()
