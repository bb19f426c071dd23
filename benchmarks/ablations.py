"""Short ablations from the bundled checkpoint's own diffusion U-Net: python benchmarks/ablations.py

Every variant starts from the frozen autoencoder and text encoder and, but for the one that says otherwise, from the
bundled reference's U-Net cut back to its 4 image channels, as a pretrained diffusion network comes; text pathway and
student parts are fresh. It trains for the same `--steps` of `--batch` pictures and is scored on the same test scenes.
Repeated seeds say how much of a difference is chance. Finished runs are kept in the output and not trained again.
These are short runs at a small size: they rank ideas, they are nobody's best result.
"""

from __future__ import annotations

import argparse
import copy
import csv
import hashlib
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from digseg_engine.evaluation.predictors import Predict, reference_predictor, student_predictor
from digseg_engine.evaluation.protocols import TestScenes
from digseg_engine.evaluation.score import evaluate
from digseg_engine.model.pretrained import BUNDLED, Checkpoint, load_checkpoint, new_reference, new_student
from digseg_engine.model.reference import Reference, expand_conv_in
from digseg_engine.runtime.machine import processor
from digseg_engine.training.loop import Loss, StageConfig, train_stage
from digseg_engine.training.objectives.denoising import DenoisingLoss
from digseg_engine.training.objectives.one_step import OneStepLoss
from digseg_engine.training.objectives.pairs import PairSource
from digseg_engine.training.objectives.student import DistillationLoss
from digseg_engine.worlds.pool import Pool
from digseg_engine.worlds.sources import cache_latents, parse_domains, scene_batches, scene_pools

RESULTS = Path(__file__).with_name("results")
BASE = "W|0"  # zero slot, one step, text pathway, pretrained U-Net


@dataclass(frozen=True)
class Budget:
    """What every variant gets."""

    domains: str = "aerial,crops"
    size: int = 48
    steps: int = 200
    batch: int = 8
    scenes: int = 30  # test scenes per domain
    train_scenes: int = 400  # per domain

    @property
    def stage(self) -> StageConfig:
        return StageConfig(self.steps, self.batch, 1e-3, prompts=8, warmup=10, weight_decay=0.01, clip=1.0, ema=0.95)


class Plain(Reference):
    """A text-conditioned U-Net that answers with the mask latent at once: no mask slot, no noise, constant time."""

    def forward(self, latents: Tensor, timestep: Tensor, text: Tensor, token_mask: Tensor | None = None) -> Tensor:
        return -super().forward(latents[:, :4], torch.zeros_like(timestep), text, token_mask)  # the sampler negates v


def narrow_unet(c: Checkpoint, trained: bool = True) -> UNet2DConditionModel:
    """The bundled reference's U-Net with a 4-channel input, its weights or new ones."""
    unet = copy.deepcopy(c.reference.unet)
    narrow = nn.Conv2d(4, unet.conv_in.out_channels, 3, padding=1)
    with torch.no_grad():
        narrow.weight.copy_(unet.conv_in.weight[:, :4])
        narrow.bias.copy_(unet.conv_in.bias)
    unet.conv_in = narrow
    unet.register_to_config(in_channels=4)
    return unet if trained else UNet2DConditionModel.from_config(unet.config)


def reference(c: Checkpoint, init: str = "zero", pathway: bool = True) -> nn.Module:
    """A fresh reference; init "zero" is W|0, "noisy" is W/2|W/2, "random" draws the input convolution anew."""
    unet = narrow_unet(c)
    expand_conv_in(unet, "noisy" if init == "noisy" else "zero")
    if init == "random":
        unet.conv_in.reset_parameters()
    model = new_reference(unet, c.config).requires_grad_(True)
    model.pathway.requires_grad_(pathway)  # its gates start at zero: frozen, it adds nothing
    return model


def plain(c: Checkpoint) -> nn.Module:
    model = Plain(narrow_unet(c, trained=False), c.config.pathway_heads).requires_grad_(True)
    model.pathway.requires_grad_(False)
    return model


def student(c: Checkpoint) -> nn.Module:
    """A student around the reference's U-Net; injections, stem and head are fresh."""
    unet = narrow_unet(c)
    expand_conv_in(unet, "zero")
    model = new_student(unet, c.config, c.vae).requires_grad_(True)
    model.text_centre.copy_(c.student.text_centre)
    model.text_whiten.copy_(c.student.text_whiten)
    return model


@dataclass(frozen=True)
class Bench:
    """What all variants share."""

    checkpoint: Checkpoint
    pools: dict[str, Pool]
    budget: Budget

    def loss(self, kind: str, seed: int) -> Loss:
        c, stage, batches = self.checkpoint, self.budget.stage, scene_batches(self.pools, seed)
        if kind == "shared":  # ground truth only, as the others
            parts = (c.vae, c.text_encoder, c.tokenizer, c.reference, c.schedule)
            return DistillationLoss(batches, *parts, stage, every=10**9)
        source = PairSource(batches, c.vae, c.text_encoder, c.tokenizer, stage)
        if kind == "diffusion":
            return DenoisingLoss(source, c.schedule)
        return OneStepLoss(source, c.schedule, noise=kind == "one step from noise")


@dataclass(frozen=True)
class Variant:
    """One way to build and train; `scored` lists (label, sampling steps, from noise), steps 0 = the student."""

    name: str
    make: Callable[[Checkpoint], nn.Module]
    loss: str = "one step"
    scored: tuple[tuple[str, int, bool], ...] = (("", 1, False),)
    seeds: tuple[int, ...] = (0,)


VARIANTS = (
    Variant(BASE, reference, seeds=(0, 1, 2)),
    Variant("W/2|W/2", lambda c: reference(c, "noisy"), seeds=(0, 1)),
    Variant("random", lambda c: reference(c, "random"), seeds=(0, 1)),
    Variant("cross-attention only", lambda c: reference(c, pathway=False), seeds=(0, 1)),
    Variant("one step from noise", reference, "one step from noise", (("", 1, True),)),
    Variant("v-prediction", reference, "diffusion", ((", zero slot, 1 step", 1, False), (", noise, 4 steps", 4, True))),
    Variant("plain U-Net from nothing", plain),
    Variant("shared trunk (student)", student, "shared", (("", 0, False),)),
)
# question, then the names of its rows: the base first, as the question calls it
QUESTIONS: dict[str, dict[str, str]] = {
    "input convolution": {BASE: "W | 0", "W/2|W/2": "W/2 | W/2", "random": "random"},
    "mask slot": {
        BASE: "zeros, mask loss", "one step from noise": "noise, mask loss",
        "v-prediction, zero slot, 1 step": "v-prediction loss, 1 step from zeros",
        "v-prediction, noise, 4 steps": "v-prediction loss, 4 steps from noise",
    },
    "language": {BASE: "with text pathway", "cross-attention only": "U-Net's own cross-attention only"},
    "prompts": {BASE: "one pass per prompt", "shared trunk (student)": "shared trunk (student)"},
    "pretraining": {BASE: "U-Net that saw dense labels of these domains", "plain U-Net from nothing": "plain U-Net from nothing"},
}  # fmt: skip


def measure(bench: Bench, variant: Variant, seed: int, folder: Path) -> list[dict[str, Any]]:
    """Train one variant, score it, time its answers to all prompts of the scored scenes."""
    budget, c = bench.budget, copy.copy(bench.checkpoint)
    torch.manual_seed(seed)
    model = variant.make(c)
    began, used = time.perf_counter(), time.process_time()
    train_stage(variant.name, model, bench.loss(variant.loss, seed), budget.stage, folder, resume=False, seed=seed)
    spent = {"training_seconds": time.perf_counter() - began, "training_cpu_seconds": time.process_time() - used}
    rows = []
    for label, steps, noise in variant.scored:
        predict = predictor(c, model, steps, noise, budget.size)
        used = time.process_time()
        names = budget.domains.split(",")
        scores = {name: evaluate(predict, TestScenes(name, budget.scenes, budget.size)) for name in names}
        ious = {name: round(both.together.miou(), 4) for name, both in scores.items()}
        alone = [both.alone.miou() for both in scores.values()]
        row = {"variant": variant.name + label, "seed": seed, **ious, "miou": round(sum(ious.values()) / len(ious), 4),
               "miou_alone": round(sum(alone) / len(alone), 4)}  # fmt: skip
        spent["answer_cpu_seconds"] = time.process_time() - used
        rows.append({**row, **{key: round(value, 1) for key, value in spent.items()}})
        print(rows[-1], flush=True)
    return rows


def predictor(c: Checkpoint, model: Any, steps: int, noise: bool, size: int) -> Predict:
    if steps == 0:
        c.student = model
        return student_predictor(c, size)
    c.reference = model
    return reference_predictor(c, steps, size, noise)


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line per question and variant: mean, lowest and highest mIoU over its seeds."""
    lines = []
    for question, variants in QUESTIONS.items():
        for name, title in variants.items():
            found = [row for row in rows if row["variant"] == name]
            if found:
                ious = [row["miou"] for row in found]
                seconds = [row["answer_cpu_seconds"] for row in found]
                lines.append({
                    "question": question, "variant": title, "seeds": len(ious), "miou": round(sum(ious) / len(ious), 4),
                    "low": min(ious), "high": max(ious), "answer_cpu_seconds": round(sum(seconds) / len(seconds), 1),
                })  # fmt: skip
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, kind in (("domains", str), ("size", int), ("steps", int), ("batch", int), ("scenes", int)):
        parser.add_argument(f"--{name}", type=kind, default=getattr(Budget(), name))
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "ablations.json")
    a = parser.parse_args()
    budget = Budget(a.domains, a.size, a.steps, a.batch, a.scenes)
    about = {
        "command": "python benchmarks/ablations.py", "budget": asdict(budget), "start": start(),
        "figure": "mean IoU of the label map", "torch": torch.__version__,
        "machine": {"processor": processor(), "threads": torch.get_num_threads()},
    }  # fmt: skip
    stored = json.loads(a.output.read_text()) if a.output.is_file() else {}
    same = all(stored.get(key) == about[key] for key in ("budget", "start"))
    rows = stored["runs"] if same else []
    with tempfile.TemporaryDirectory() as temporary:
        bench = prepare(budget, Path(temporary))
        for seed in range(3):
            for variant in VARIANTS:
                done = any(row["variant"].startswith(variant.name) and row["seed"] == seed for row in rows)
                if seed in variant.seeds and not done:
                    rows += measure(bench, variant, seed, Path(temporary) / f"{VARIANTS.index(variant)}-{seed}")
                    write({**about, "table": table(rows), "runs": rows}, a.output)


def start() -> str:
    """Which weights the variants start from; runs from others are not put into one table."""
    weights = (BUNDLED / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    return f"reference U-Net of the bundled digseg-tiny, sha256 {hashlib.sha256(weights).hexdigest()[:12]}"


def prepare(budget: Budget, folder: Path) -> Bench:
    c = load_checkpoint()
    domains = parse_domains(f"scenes:{budget.domains}")
    pools = scene_pools(domains, budget.train_scenes, budget.size, folder)
    cache_latents(c.vae, pools, folder)
    return Bench(c, pools, budget)


def write(body: dict[str, Any], path: Path) -> None:
    """All runs as JSON, the table as CSV and as a picture."""
    path.write_text(json.dumps(body, indent=2) + "\n")
    with path.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(body["table"][0]))
        writer.writeheader()
        writer.writerows(body["table"])
    draw(body["table"], path.with_suffix(".png"), body["budget"]["steps"])


def draw(lines: list[dict[str, Any]], picture: Path, steps: int) -> None:
    """Horizontal bars, one colour per question, lines from the lowest to the highest seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    questions = list(QUESTIONS)
    figure, axes = plt.subplots(figsize=(7.5, 4.5))
    labels = [f"{line['question']}: {line['variant']}" for line in lines]
    means = [line["miou"] for line in lines]
    reach = [[line["miou"] - line["low"] for line in lines], [line["high"] - line["miou"] for line in lines]]
    colours = [f"C{questions.index(line['question'])}" for line in lines]
    bars = axes.barh(range(len(lines)), means, xerr=reach, capsize=3, color=colours, ecolor="0.3")
    axes.bar_label(bars, fmt="%.3f", padding=6)
    axes.set_yticks(range(len(lines)), labels)
    axes.invert_yaxis()
    axes.set(xlabel=f"mean IoU after {steps} training steps", xlim=(0, min(1, 1.25 * max(means) + 0.05)))
    figure.tight_layout()
    figure.savefig(picture, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    main()
