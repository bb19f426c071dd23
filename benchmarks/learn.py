"""What a denoising-pretrained trunk brings to learning from few labelled pictures, beside peers.

    python -m benchmarks.learn --data FOLDER ... -o FOLDER

Every method gets the same labelled pictures, the same size and batch, the same augmentation and the same CPU seconds of training
(steps are the budget over the method's own measured cost of a step); all are scored on the same test pictures.

    nothing         the student, its trunk drawn at random
    denoising       the same, its trunk first trained as a text-to-image denoiser on captions, without masks
    labels          the same, its trunk first trained on dense labels of painted scenes, without the real pictures
    bundled         the student of the checkpoint as it is shipped
    closed set      a plain U-Net of the same size with fixed classes, from nothing
    ImageNet frozen, ImageNet tuned   EfficientNet-Lite0 with a light decoder, see benchmarks/peers/closed_set.py

Autoencoder and text encoder are the checkpoint's, frozen. The two pretrainings take the same CPU seconds. Finished rows are
kept in the output and not measured again: a run may be stopped and begun anew.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.peers.closed_set import ClosedSetLoss, Pretrained, UNet, closed_set_predictor
from digseg_engine.data.batch import Batches
from digseg_engine.data.batches import FolderBatches, FolderOptions, folder_batches
from digseg_engine.data.datasets import open_dataset
from digseg_engine.data.mixtures import MixedBatches
from digseg_engine.evaluation.predictors import Predict, student_predictor
from digseg_engine.evaluation.protocols import LabelledPictures
from digseg_engine.evaluation.score import evaluate
from digseg_engine.files import write_json
from digseg_engine.model.folder import find_start
from digseg_engine.model.pretrained import Checkpoint, load_checkpoint, new_student
from digseg_engine.runtime.machine import processor
from digseg_engine.training.loop import Loss, StageConfig, train_stage
from digseg_engine.training.objectives.dense import Backbone, BackboneLoss
from digseg_engine.training.objectives.student import DistillationLoss
from digseg_engine.training.objectives.text_to_image import Denoiser, TextToImageLoss
from digseg_engine.worlds.scenes import DOMAINS
from digseg_engine.worlds.sources import cache_latents, scene_batches, scene_pools

OUTPUT = Path(__file__).resolve().parent / "results" / "learn.json"
CHART = Path(__file__).resolve().parents[1] / "docs" / "learn.png"
METHODS = ("nothing", "denoising", "labels", "bundled", "closed set", "ImageNet frozen", "ImageNet tuned")
ALL = 0  # pictures: every one of the training split
AUGMENT = ("colour",)
TRIAL = 8  # steps by which a method's cost is measured, after one that warms up
SCENES = 400  # painted scenes per domain of the pretrainings


@dataclass(frozen=True)
class Budget:
    """What every method gets."""

    size: int = 128  # pixels
    batch: int = 8
    prompts: int = 8
    seconds: float = 90.0  # of CPU time, of training on the labelled pictures
    pretraining: float = 1200.0  # of CPU time, of either pretraining
    test: int = 60  # pictures
    augment: tuple[str, ...] = AUGMENT
    precision: str = "no"  # of every method's training; bf16 where the processor multiplies it faster

    def stage(self, steps: int, optimizer: str, rate: float, channels_last: bool = False) -> StageConfig:
        return StageConfig(steps, self.batch, rate, prompts=self.prompts, warmup=max(1, steps // 20), weight_decay=0.01,
                           clip=1.0, ema=max(0.5, 1 - 10 / steps), optimizer=optimizer, precision=self.precision,
                           channels_last=channels_last, save_every=10**9, save_minutes=1e9)  # fmt: skip


@dataclass
class Bench:
    """What all methods share."""

    checkpoint: Checkpoint
    folders: list[Path]
    budget: Budget
    room: Path

    def fresh_student(self, seed: int) -> Checkpoint:
        """The checkpoint with a student drawn at random, but for what only describes text."""
        torch.manual_seed(seed)
        c = copy.copy(self.checkpoint)
        unet = UNet2DConditionModel.from_config(c.student.unet.config)
        c.student = new_student(unet, c.config, c.vae)
        for name in ("neutral", "text_centre", "text_whiten"):
            getattr(c.student, name).copy_(getattr(self.checkpoint.student, name))
        return c

    def labelled(self, folder: Path, count: int, seed: int) -> FolderBatches:
        """Batches from `count` pictures of the training split, the same ones for the same seed."""
        few = limited(folder, count, seed, self.room / "few")
        options = FolderOptions(split="train", workers=0, augment=self.budget.augment)
        return folder_batches(self.checkpoint.vae, str(few), self.budget.size, seed, options, self.room / "latents")

    def scenes(self, seed: int) -> Any:
        pools = scene_pools(DOMAINS, SCENES, self.budget.size, self.room / "pools")
        cache_latents(self.checkpoint.vae, pools, self.room / "pools")
        return scene_batches(pools, seed)


def limited(folder: Path, count: int, seed: int, room: Path) -> Path:
    """A data set of `count` training pictures of another one, drawn by the seed; its files are links."""
    place = room / f"{folder.name}-{count or 'all'}-{seed}"
    if (place / "train.txt").is_file():
        return place
    place.mkdir(parents=True, exist_ok=True)
    names = (folder / "train.txt").read_text().split()
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    for name in ("images", "masks", "classes.json"):
        (place / name).symlink_to((folder / name).resolve())
    (place / "train.txt").write_text("\n".join(names[i] for i in order[: count or len(names)]) + "\n")
    return place


def steps_within(
    module: nn.Module, make: Callable[[StageConfig], Loss], stage: Callable[[int], StageConfig], seconds: float
) -> int:
    """How many steps of the method fit into so many CPU seconds, by what more steps cost a run of a few of a copy: optimizer and
    averages too, and not what a run costs once."""
    spent = []
    for steps in (1, 1 + TRIAL):
        copied = copy.deepcopy(module)
        began = time.process_time()
        with TemporaryDirectory() as room:
            train_stage("trial", copied, make(stage(steps)), stage(steps), Path(room), resume=False)
        spent.append(time.process_time() - began)
    return max(10, round(seconds / ((spent[1] - spent[0]) / TRIAL)))


def train(
    module: nn.Module, make: Callable[[StageConfig], Loss], optimizer: str, rate: float, budget: Budget, seconds: float,
    folder: Path, seed: int,
) -> dict[str, float]:  # fmt: skip
    """Train for so many CPU seconds; what was spent."""
    module.train().requires_grad_(True)
    if isinstance(module, Pretrained):
        module.body.requires_grad_(module.tuned)
    plain = isinstance(module, UNet)  # the format that makes it faster; students lose by it
    if plain:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    stage_of = partial(budget.stage, optimizer=optimizer, rate=rate, channels_last=plain)
    stage = stage_of(steps_within(module, make, stage_of, seconds))
    began = time.process_time()
    train_stage(folder.name, module, make(stage), stage, folder, resume=False, seed=seed)
    module.eval().requires_grad_(False)
    return {"steps": stage.steps, "training_cpu_seconds": round(time.process_time() - began, 1)}


def pretrained_trunk(bench: Bench, kind: str, seed: int) -> dict[str, torch.Tensor]:
    """The U-Net's weights after one of the two pretrainings, made once per seed."""
    stored = bench.room / f"trunk-{kind}-{seed}.safetensors"
    if not stored.is_file():
        c, budget = bench.fresh_student(seed), bench.budget
        painted: Batches = bench.scenes(seed)
        if kind == "labels":
            module: nn.Module = Backbone(c.student)

            def make(stage: StageConfig) -> Loss:
                return BackboneLoss(painted, stage)  # type: ignore[arg-type]
        else:
            real = [bench.labelled(folder, ALL, seed) for folder in bench.folders]
            mixed = MixedBatches([painted, *real], [len(real), *[1.0] * len(real)], seed)
            module = Denoiser(c.student.unet)

            def make(stage: StageConfig) -> Loss:
                return TextToImageLoss(mixed, c.text_encoder, c.tokenizer, c.schedule, stage)

        spent = train(module, make, "muon", 0.004, budget, budget.pretraining, bench.room / f"{kind}-{seed}", seed)
        print(json.dumps({"pretraining": kind, "seed": seed, **spent}), flush=True)
        save_file({name: weight.contiguous() for name, weight in c.student.unet.state_dict().items()}, stored)
    return load_file(stored)


def learned(bench: Bench, method: str, batches: FolderBatches, seed: int) -> tuple[Predict, dict[str, float]]:
    """The method after training on the labelled pictures, ready to be asked, and what that took."""
    budget, folder = bench.budget, bench.room / "last"
    classes = len(batches.dataset.names)
    if method in ("closed set", "ImageNet frozen", "ImageNet tuned"):
        torch.manual_seed(seed)
        model = UNet(classes) if method == "closed set" else Pretrained(classes, tuned=method.endswith("tuned"))
        with torch.no_grad():
            model(torch.zeros(1, 3, budget.size, budget.size))  # draws what depends on the input's channels

        def peer(stage: StageConfig) -> Loss:
            return ClosedSetLoss(batches, classes, stage.batch)

        spent = train(model, peer, "adamw", 1e-3, budget, budget.seconds, folder, seed)
        return closed_set_predictor(model, classes, budget.size), spent
    c = copy.copy(bench.checkpoint) if method == "bundled" else bench.fresh_student(seed)
    if method == "bundled":
        c.student = copy.deepcopy(c.student)
    elif method != "nothing":
        c.student.unet.load_state_dict(pretrained_trunk(bench, method, 0))

    def ours(stage: StageConfig) -> Loss:
        return DistillationLoss(batches, c.vae, c.text_encoder, c.tokenizer, c.reference, c.schedule, stage)

    rate = 0.002 if method == "bundled" else 0.004
    spent = train(c.student, ours, "muon", rate, budget, budget.seconds, folder, seed)
    return student_predictor(c, budget.size, readout=False), spent


def measure(bench: Bench, method: str, folder: Path, count: int, seed: int) -> dict[str, Any]:
    """One row: the method on so many pictures of a set."""
    shutil.rmtree(bench.room / "last", ignore_errors=True)
    batches = bench.labelled(folder, count, seed)
    predict, spent = learned(bench, method, batches, seed)
    score = evaluate(predict, LabelledPictures(folder, count=bench.budget.test, split="test")).together.miou()
    pictures = len(open_dataset(bench.room / "few" / f"{folder.name}-{count or 'all'}-{seed}", split="train"))
    return {"set": folder.name, "pictures": pictures, "method": method, "seed": seed, "miou": round(score, 4), **spent}


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean, lowest and highest of every (set, pictures, method) over its seeds."""
    keys = dict.fromkeys((row["set"], row["pictures"], row["method"]) for row in rows)
    lines = []
    for key in keys:
        own = [row["miou"] for row in rows if (row["set"], row["pictures"], row["method"]) == key]
        lines.append({"set": key[0], "pictures": key[1], "method": key[2], "seeds": len(own),
                      "miou": round(sum(own) / len(own), 4), "lowest": min(own), "highest": max(own)})  # fmt: skip
    return lines


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """One panel per set: mean IoU over labelled pictures, a line per method, bars from the lowest to the highest seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    lines, sets = summary(rows), list(dict.fromkeys(row["set"] for row in rows))
    figure, axes = plt.subplots(1, len(sets), figsize=(5 * len(sets), 4.2), squeeze=False)
    for axis, name in zip(axes[0], sets):
        for number, method in enumerate(METHODS):
            own = sorted((line for line in lines if line["set"] == name and line["method"] == method),
                         key=lambda line: line["pictures"])  # fmt: skip
            if own:
                means = [line["miou"] for line in own]
                spread = [
                    [line["miou"] - line["lowest"] for line in own],
                    [line["highest"] - line["miou"] for line in own],
                ]
                axis.errorbar([line["pictures"] for line in own], means, spread, marker="o", markersize=3, capsize=2,
                              label=method, color=f"C{number}")  # fmt: skip
        axis.set(title=name, xlabel="labelled pictures", ylabel="mean IoU, test split", xscale="log")
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, nargs="+", required=True, help="folders with train.txt and test.txt (docs/data.md)"
    )
    parser.add_argument("--checkpoint", default="digseg-tiny")
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 100, ALL], help="labelled pictures; 0: all")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--seconds", type=float, default=Budget.seconds, help="CPU seconds of every training")
    parser.add_argument(
        "--pretraining", type=float, default=Budget.pretraining, help="CPU seconds of either pretraining"
    )
    parser.add_argument("--size", type=int, default=Budget.size)
    parser.add_argument("--test", type=int, default=Budget.test, help="test pictures of every set; 0: all")
    parser.add_argument("--augment", nargs="+", default=list(AUGMENT), help="as `digseg train --augment`")
    parser.add_argument("--precision", choices=("no", "bf16"), default=Budget.precision, help="of every training")
    parser.add_argument("-o", "--folder", type=Path, required=True, help="pretrained trunks, latents, logs")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    given = parser.parse_args(arguments)
    budget = replace(Budget(), size=given.size, seconds=given.seconds, pretraining=given.pretraining, test=given.test,
                     augment=tuple(given.augment), precision=given.precision)  # fmt: skip
    given.folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(load_checkpoint(find_start(given.checkpoint)), given.data, budget, given.folder)
    said = {"budget": {**vars(budget), "augment": given.augment}, "checkpoint": given.checkpoint}
    body: dict[str, Any] = json.loads(given.output.read_text()) if given.output.is_file() else {**said, "rows": []}
    if {key: body.get(key) for key in said} != said:
        raise SystemExit(f"{given.output} holds another budget or checkpoint; give another --output, or move it away")
    rows = body["rows"]
    for seed in given.seeds:
        for count in given.counts:
            for folder in given.data:
                for method in given.methods:
                    asked = {"set": folder.name, "asked": count, "method": method, "seed": seed}
                    if any(asked.items() <= row.items() for row in rows):
                        continue
                    rows.append({**asked, **measure(bench, method, folder, count, seed)})
                    print(json.dumps(rows[-1]), flush=True)
                    body.update(summary=summary(rows), processor=processor(), threads=torch.get_num_threads(),
                                torch=torch.__version__, date=str(date.today()))  # fmt: skip
                    write_json(given.output, body)
                    draw(rows, CHART if given.output == OUTPUT else given.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
