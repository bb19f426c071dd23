"""A domain the model has never seen, before and after 100 pictures of it: python benchmarks/leave_one_out.py -o FOLDER

Trains `digseg-tiny` from nothing without one domain in any stage (shortened by --scale), scores it on that domain,
fine-tunes the student on a handful of the domain's pictures as `digseg train --recipe finetune-100` does, and scores it
again. Nothing of the architecture changes: the new names are prompts like any other. The tokenizer has seen the
domain's words, as CLIP's has; no picture, mask or aligned text of the domain was. An interrupted run goes on where it
was.

The peer that could refute it is measured by --from-nothing: the same pictures, steps and settings from random weights of
autoencoder, text encoder and student alike. Its figures are added to the same report.
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
from digseg_engine.evaluation.protocols import TestScenes, Trial
from digseg_engine.evaluation.score import evaluate
from digseg_engine.model.config import preset
from digseg_engine.model.pretrained import build, load_checkpoint, save_checkpoint
from digseg_engine.runtime.machine import processor
from digseg_engine.text import PromptTokenizer
from digseg_engine.training.recipe_files import recipe_settings
from digseg_engine.training.recipes.finetune import FinetuneConfig, finetune
from digseg_engine.training.recipes.tiny import TrainConfig, train
from digseg_engine.training.run import scaled, stages_of
from digseg_engine.worlds.scenes import DOMAINS
from digseg_engine.worlds.vocabulary import train_tokenizer

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
    return {name: round(value, 4) for name, value in figures.items()}, panel(
        [Trial(domain, samples, predict)], {domain: found}
    )


def settings_without(scale: float, compiled: bool) -> TrainConfig:
    config = scaled(recipe_settings("tiny", TrainConfig), scale)
    stages: dict[str, Any] = {
        name: replace(stage, compile=stage.compile and compiled) for name, stage in stages_of(config).items()
    }
    return replace(config, **stages)


def minutes(checkpoint: Path) -> float:
    """What a run took, from its own logs."""
    made = json.loads((checkpoint / "training" / "made.json").read_text())
    return round(made["seconds"]["total"] / 60, 1)


def random_weights(folder: Path) -> Path:
    """The preset as drawn, nothing trained, as a checkpoint."""
    chosen = preset("tiny")
    torch.manual_seed(0)
    raw = train_tokenizer(chosen.text["vocab_size"])
    if not (folder / "digseg.json").is_file():
        save_checkpoint(build(chosen, PromptTokenizer(raw)), raw.to_str(pretty=True), folder)
    return folder


def tune(start: Path, folder: Path, a: argparse.Namespace) -> Path:
    """The student on a handful of the domain's pictures, as `--recipe finetune-100` does it, imitating now and then."""
    quick = recipe_settings("finetune-100", FinetuneConfig)
    stage = replace(quick.student, steps=a.steps, warmup=min(quick.student.warmup, a.steps))
    tuning = replace(quick, scenes=a.pictures, imitate_every=16, student=stage)
    return finetune(str(start), folder, tuning, True, f"scenes:{a.domain}")


def measure_peer(a: argparse.Namespace) -> None:
    """Add the peer to a report whose pictures, steps and domain it shares."""
    body = json.loads(a.report.read_text())
    for name in ("domain", "pictures", "steps"):
        if body[name] != getattr(a, name):
            raise SystemExit(f"{a.report} was measured with {name} {body[name]}, not {getattr(a, name)}")
    tuned = tune(random_weights(a.output / "nothing"), a.output / "tuned-from-nothing", a)
    body["from_nothing"] = {
        "command": command_line(), "after": score(tuned, a.domain, a.scenes)[0], "training_minutes": 0,
        "tuning_minutes": minutes(tuned), "machine": {"processor": processor(), "threads": torch.get_num_threads()},
    }  # fmt: skip
    a.report.write_text(json.dumps(body, indent=2) + "\n")
    print(json.dumps(body["from_nothing"], indent=2))


def command_line() -> str:
    return " ".join(["python", "benchmarks/leave_one_out.py", *sys.argv[1:]])


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
    parser.add_argument("--from-nothing", action="store_true", help="only the peer: the same pictures, random weights")
    a = parser.parse_args()
    if a.from_nothing:
        return measure_peer(a)
    others = "scenes:" + ",".join(d for d in DOMAINS if d != a.domain)
    settings = settings_without(a.scale, not a.no_compile)
    without = train("tiny", a.output / "without", settings, resume=True, data=others)
    before, first = score(without, a.domain, a.scenes)
    tuned = tune(without, a.output / "tuned", a)
    after, second = score(tuned, a.domain, a.scenes)
    with (a.output / "tuned" / "student" / "log.csv").open(newline="") as file:
        curve = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    body = {
        "command": command_line(), "domain": a.domain,
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
