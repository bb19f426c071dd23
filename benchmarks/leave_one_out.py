"""A domain the model has never seen, before and after 100 pictures of it: python benchmarks/leave_one_out.py -o FOLDER

Trains `digseg-tiny` without one domain (shortened by --scale), scores it on that domain, fine-tunes the student on a
handful of the domain's pictures with `digseg train --init --student-only`, and scores it again. Nothing of the
architecture changes: the new names are prompts like any other.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from digseg_engine.evaluation.predictors import student_predictor
from digseg_engine.evaluation.report import panel
from digseg_engine.evaluation.samples import TestScenes
from digseg_engine.evaluation.score import evaluate
from digseg_engine.model.pretrained import load_checkpoint
from digseg_engine.training.finetune import FinetuneConfig, finetune
from digseg_engine.training.loop import StageConfig
from digseg_engine.training.run import scaled
from digseg_engine.training.scenes import DOMAINS
from digseg_engine.training.train import TrainConfig, train

RESULTS = Path(__file__).with_name("results")


def score(folder: Path, domain: str, scenes: int) -> tuple[dict[str, float], Image.Image]:
    """IoU per name on the domain, and a panel of telling pictures."""
    c = load_checkpoint(folder)
    predict, samples = student_predictor(c), TestScenes(domain, scenes, c.config.image_size)
    found = evaluate(predict, samples)
    figures = {"mIoU": found.together.miou(), "false area, each prompt alone": found.alone.false_area()}
    return {**figures, **found.together.iou()}, panel([samples], {domain: found}, predict)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--domain", choices=DOMAINS, default="crops")
    parser.add_argument("--pictures", type=int, default=100, help="pictures to fine-tune on")
    parser.add_argument("--steps", type=int, default=300, help="fine-tuning steps")
    parser.add_argument("--scale", type=float, default=0.2, help="length of the training without the domain")
    parser.add_argument("--scenes", type=int, default=200, help="test scenes")
    a = parser.parse_args()
    others = "scenes:" + ",".join(d for d in DOMAINS if d != a.domain)
    began = time.perf_counter()
    without = train("tiny", a.output / "without", scaled(TrainConfig(), a.scale), resume=True, data=others)
    trained = time.perf_counter() - began
    before, first = score(without, a.domain, a.scenes)
    began = time.perf_counter()
    stage = StageConfig(a.steps, 8, 2e-3, prompts=8, warmup=20, ema=0.98)
    settings = replace(FinetuneConfig(), scenes=a.pictures, student=stage)
    tuned = finetune(str(without), a.output / "tuned", settings, True, f"scenes:{a.domain}", student_only=True)
    after, second = score(tuned, a.domain, a.scenes)
    body = {
        "command": f"python benchmarks/leave_one_out.py --domain {a.domain} --scale {a.scale}", "domain": a.domain,
        "pictures": a.pictures, "steps": a.steps, "test_scenes": a.scenes, "before": before, "after": after,
        "training_minutes": round(trained / 60, 1), "tuning_minutes": round((time.perf_counter() - began) / 60, 1),
        "torch": torch.__version__, "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }  # fmt: skip
    (RESULTS / "leave-one-out.json").write_text(json.dumps(body, indent=2) + "\n")
    sheet = Image.new("RGB", (first.width, first.height + second.height), "white")
    sheet.paste(first, (0, 0))
    sheet.paste(second, (0, first.height))
    sheet.save(RESULTS / "leave-one-out.png")
    print(json.dumps(body, indent=2))


if __name__ == "__main__":
    main()
