"""Short ablations on the bundled checkpoint's own trunk, the same number of steps each: python benchmarks/ablations.py

Every variant starts from the frozen autoencoder and text encoder and from the trained trunk (as "pretrained" network,
its 4-channel input rebuilt) or from random weights, trains for `--steps` steps of `--batch` pictures, and is scored on the
same test scenes. One table as JSON and PNG. These are short runs: they rank ideas, they are nobody's best result.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from digseg_engine.evaluation.predictors import reference_predictor, student_predictor
from digseg_engine.evaluation.samples import TestScenes
from digseg_engine.evaluation.score import evaluate
from digseg_engine.model.pretrained import Checkpoint, load_checkpoint, new_reference, new_student
from digseg_engine.model.reference import expand_conv_in
from digseg_engine.training.denoising import DenoisingLoss, OneStepLoss, PairSource
from digseg_engine.training.loop import Loss, StageConfig, train_stage
from digseg_engine.training.pool import SceneBatches
from digseg_engine.training.prompts import typical_tokens
from digseg_engine.training.sources import cache_latents, parse_domains, scene_batches, scene_pools
from digseg_engine.training.stages import DistillationLoss

RESULTS = Path(__file__).with_name("results")
DOMAINS = ("microscopy", "aerial", "crops")  # few prompts, so that eight steps per prompt stay affordable


@dataclass(frozen=True)
class Variant:
    """One row of the table."""

    question: str
    name: str
    steps: int  # sampling steps it is scored with; 0 = the student
    make: Callable[[Checkpoint], nn.Module]
    loss: Callable[[Bench], Loss]


@dataclass
class Bench:
    """What all variants share."""

    checkpoint: Checkpoint
    batches: SceneBatches
    config: StageConfig
    teacher: nn.Module

    @property
    def pairs(self) -> PairSource:
        c = self.checkpoint
        return PairSource(self.batches, c.vae, c.text_encoder, c.tokenizer, self.config)


def pretrained_unet(c: Checkpoint) -> UNet2DConditionModel:
    """The trained trunk with a 4-channel input, as a diffusion model would come."""
    unet = copy.deepcopy(c.student.unet)
    narrow = nn.Conv2d(4, unet.conv_in.out_channels, 3, padding=1)
    with torch.no_grad():
        narrow.weight.copy_(unet.conv_in.weight[:, :4])
        narrow.bias.copy_(unet.conv_in.bias)
    unet.conv_in = narrow
    unet.register_to_config(in_channels=4)
    return unet


def reference(c: Checkpoint, slot: str = "zero", trained: bool = True, pathway: bool = True) -> nn.Module:
    """A fresh reference; slot "zero" is W|0, "noisy" is W/2|W/2, "random" draws the input convolution anew."""
    unet = pretrained_unet(c)
    expand_conv_in(unet, "noisy" if slot == "noisy" else "zero")
    if slot == "random":
        unet.conv_in.reset_parameters()
    if not trained:
        unet = UNet2DConditionModel.from_config(unet.config)
    model = new_reference(unet, c.config)
    model.pathway.requires_grad_(pathway)
    return model


def student(c: Checkpoint) -> nn.Module:
    """A student whose trunk is pretrained and whose injections, stem and head are fresh."""
    unet = pretrained_unet(c)
    expand_conv_in(unet, "zero")
    model = new_student(unet, c.config, c.vae)
    model.text_centre.copy_(c.student.text_centre)
    model.text_whiten.copy_(c.student.text_whiten)
    return model


def noisy(bench: Bench) -> Loss:
    return DenoisingLoss(bench.pairs, bench.checkpoint.schedule)


def one_step(bench: Bench) -> Loss:
    return OneStepLoss(bench.pairs, bench.checkpoint.schedule)


def shared(bench: Bench) -> Loss:
    c = bench.checkpoint
    parts = (c.vae, c.text_encoder, c.tokenizer, c.reference, c.schedule)
    return DistillationLoss(bench.batches, *parts, bench.config, every=10**9)  # ground truth only, as the others


VARIANTS = (
    Variant("input convolution", "W|0", 1, reference, one_step),
    Variant("input convolution", "W/2|W/2", 1, lambda c: reference(c, "noisy"), one_step),
    Variant("input convolution", "random", 1, lambda c: reference(c, "random"), one_step),
    Variant("mask slot", "zero slot, 1 step", 1, reference, one_step),
    Variant("mask slot", "noise, 4 steps", 4, reference, noisy),
    Variant("language", "with text pathway", 1, reference, one_step),
    Variant("language", "cross-attention only", 1, lambda c: reference(c, pathway=False), one_step),
    Variant("pretraining", "pretrained trunk", 1, reference, one_step),
    Variant("pretraining", "plain U-Net from nothing", 1, lambda c: reference(c, trained=False), one_step),
    Variant("prompts", "one pass per prompt", 1, reference, one_step),
    Variant("prompts", "shared trunk (student)", 0, student, shared),
)


def measure(bench: Bench, variant: Variant, scenes: int, folder: Path) -> dict[str, object]:
    """Train one variant, score it, time its answer to all prompts of the scored scenes."""
    c = copy.copy(bench.checkpoint)
    torch.manual_seed(0)
    model = variant.make(c)
    model.requires_grad_(True)
    if hasattr(model, "pathway") and variant.name == "cross-attention only":
        model.pathway.requires_grad_(False)
    began = time.perf_counter()
    train_stage(variant.name, model, variant.loss(bench), bench.config, folder, resume=False)
    training = time.perf_counter() - began
    if variant.steps:
        c.reference = model
        predict = reference_predictor(c, variant.steps)
    else:
        c.student = model
        predict = student_predictor(c)
    began = time.perf_counter()
    scores = {d: evaluate(predict, TestScenes(d, scenes, c.config.image_size)).together.miou() for d in DOMAINS}
    row = {"question": variant.question, "variant": variant.name, **{d: round(v, 4) for d, v in scores.items()},
           "mean": round(sum(scores.values()) / len(scores), 4), "training_seconds": round(training, 1),
           "answer_seconds": round(time.perf_counter() - began, 2)}  # fmt: skip
    print(row)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--scenes", type=int, default=25, help="test scenes per domain")
    parser.add_argument("--train-scenes", type=int, default=600, help="training scenes per domain")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "ablations.json")
    arguments = parser.parse_args()
    c = load_checkpoint()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        size = c.config.image_size
        pools = scene_pools(parse_domains("scenes:" + ",".join(DOMAINS)), arguments.train_scenes, size, folder)
        cache_latents(c.vae, pools, folder)
        batches = scene_batches(pools, seed=0)
        c.student.set_whitening(typical_tokens(c.text_encoder, c.tokenizer, batches.names, batches.phrase))
        config = StageConfig(arguments.steps, arguments.batch, 3e-3, prompts=12, warmup=10, ema=0.97)
        bench = Bench(c, batches, config, c.reference)
        known: dict[object, dict[str, object]] = {}
        rows = []
        for number, variant in enumerate(VARIANTS):
            key = (variant.make, variant.loss, variant.steps)
            if key not in known:
                known[key] = measure(bench, variant, arguments.scenes, folder / str(number))
            rows.append({**known[key], "question": variant.question, "variant": variant.name})
    body = {
        "command": "python benchmarks/ablations.py", "steps": arguments.steps, "batch": arguments.batch,
        "scenes_per_domain": arguments.scenes, "size": size, "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads", "rows": rows,
    }  # fmt: skip
    arguments.output.write_text(json.dumps(body, indent=2) + "\n")
    draw(rows, arguments.output.with_suffix(".png"), arguments.steps)


def draw(rows: list[dict[str, object]], picture: Path, steps: int) -> None:
    """Horizontal bars, one colour per question."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    questions = list(dict.fromkeys(str(row["question"]) for row in rows))
    figure, axes = plt.subplots(figsize=(7, 4.5))
    colours = [f"C{questions.index(str(row['question']))}" for row in rows]
    labels = [f"{row['question']}: {row['variant']}" for row in rows]
    bars = axes.barh(labels, [float(str(row["mean"])) for row in rows], color=colours)
    axes.bar_label(bars, fmt="%.3f", padding=2)
    axes.invert_yaxis()
    axes.set(xlabel=f"mean IoU after {steps} training steps", xlim=(0, 1))
    figure.tight_layout()
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main()
