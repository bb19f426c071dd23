"""`digseg distill`: the reference at N steps -> the same network at 1, 2 and 4 steps -> the one-pass student.

Afterwards every number of steps is scored and timed on the same pictures: `distill.json`, `distill.png`.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from accelerate import PartialState

from digseg_engine.console import Pace
from digseg_engine.data.batches import FolderOptions
from digseg_engine.data.shares import Data, scored_shares, short_names
from digseg_engine.errors import UsageError
from digseg_engine.evaluation.predictors import Predict, reference_predictor, student_predictor
from digseg_engine.evaluation.protocols import LabelledPictures, Samples, TestScenes
from digseg_engine.evaluation.score import evaluate
from digseg_engine.files import replacing, write_json
from digseg_engine.model.folder import find_start
from digseg_engine.model.pretrained import Checkpoint
from digseg_engine.training.loop import StageConfig
from digseg_engine.training.objectives.few_step import FewStepLoss
from digseg_engine.training.objectives.pairs import PairSource
from digseg_engine.training.objectives.student import DistillationLoss
from digseg_engine.training.recipe_files import RecipeSettings, Start, distill_recipe, recipe_settings
from digseg_engine.training.recipes.finetune import check_data, load_start, open_batches
from digseg_engine.training.recipes.measuring import measure_checkpoint
from digseg_engine.training.recipes.presence import teach_presence
from digseg_engine.training.recipes.summary import print_schedule
from digseg_engine.training.recipes.validating import reference_validator, student_validator
from digseg_engine.training.run import Run, divided, freeze, move
from digseg_engine.training.thrift import keep_on_device
from digseg_engine.words import counted
from digseg_engine.worlds.scenes import is_scenes


@dataclass(frozen=True, kw_only=True)
class DistillConfig(RecipeSettings):
    """Both distillation stages and the report at the end; the values stand in `assets/recipes/distill-*.toml`."""

    START: ClassVar[Start] = "reference"

    scenes: int  # per domain, when distilled on scenes
    size: int | None = None  # pixels; None: the model's own
    imitate_every: int = 0  # as in FinetuneConfig
    teacher_steps: int
    grid: tuple[int, ...]  # numbers of steps that are learned
    report_scenes: int  # test scenes per domain, or held-out pictures of a folder, in the report
    folder: FolderOptions = FolderOptions()  # when distilled on a folder of labelled pictures
    few_step: StageConfig
    student: StageConfig
    presence: StageConfig | None = None  # of a student with a presence readout

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.grid or min(self.grid) < 1 or max(self.grid) >= self.teacher_steps:
            raise UsageError(f"the few-step grid must be 1 or more and below the teacher's {self.teacher_steps} steps, "
                             f"got {', '.join(map(str, self.grid)) or 'nothing'}")  # fmt: skip


def distill(
    source: str, out: Path, config: DistillConfig | None = None, resume: bool = False, data: Data = "scenes",
    override: bool = False,
) -> Path:  # fmt: skip
    """Distil the DiGSeg checkpoint `source` into `out`; returns the new checkpoint's directory."""
    start = find_start(source)
    config = config or recipe_settings(distill_recipe(start), DistillConfig)
    run = Run(out, resume, config.seed, override)
    config = divided(config, PartialState().num_processes)
    checkpoint, tokenizer_json, trained = load_start(start)
    if not trained:
        raise UsageError(
            f"{source} holds no trained reference to distil; train one first: digseg train --init {source} --data DATA"
        )
    check_data(checkpoint, data, config)
    run.describe(config, source=source, data=data if isinstance(data, str) else list(data))
    move(checkpoint)
    print_schedule(out, config, checkpoint, config.size or checkpoint.config.image_size)
    freeze(checkpoint.vae, checkpoint.text_encoder)
    batches = open_batches(checkpoint, data, config, out)
    teacher = copy.deepcopy(checkpoint.reference)
    freeze(teacher)
    pairs = PairSource(batches, checkpoint.vae, checkpoint.text_encoder, checkpoint.tokenizer, config.few_step)
    checkpoint.reference.requires_grad_(True)
    keep_on_device(checkpoint, ("vae", "text_encoder", "reference"))
    few = FewStepLoss(pairs, teacher, checkpoint.schedule, config.teacher_steps, config.grid)
    watched = reference_validator(checkpoint, data, config, config.few_step, min(config.grid))
    run.stage("few_step", checkpoint.reference, few, config.few_step, watched)
    freeze(checkpoint.reference)
    checkpoint.student.requires_grad_(True)
    keep_on_device(checkpoint, ("vae", "text_encoder", "student"))  # the teacher is a network of its own
    parts = (checkpoint.vae, checkpoint.text_encoder, checkpoint.tokenizer, teacher, checkpoint.schedule)
    imitate = DistillationLoss(batches, *parts, config.student, config.teacher_steps, config.imitate_every)
    watched = student_validator(checkpoint, data, config, config.student)
    run.stage("student", checkpoint.student, imitate, config.student, watched)
    teach_presence(run, checkpoint, batches, config.presence)
    folder = run.finish(checkpoint, tokenizer_json, start)
    measure_checkpoint(checkpoint, folder, data, config, "digseg distill")
    if PartialState().is_main_process:
        report(move(checkpoint), teacher, config, folder, data)
    return folder


def report_samples(checkpoint: Checkpoint, config: DistillConfig, data: Data) -> list[Samples]:
    """What the report is made on: test scenes, and the held-out split of every folder that was trained on."""
    size, sets = checkpoint.config.image_size, list[Samples]()
    shares = scored_shares(data)
    for share, name in zip(shares, short_names(shares)):
        if is_scenes(share.data):
            sets += [TestScenes(domain, config.report_scenes, size) for domain in ("microscopy", "aerial", "crops")]
        else:
            samples = LabelledPictures(share.data, config.report_scenes, config.folder.layout)
            samples.name = f"{name} {samples.dataset.split}"
            sets.append(samples)
    return sets


def report(checkpoint: Checkpoint, teacher: object, config: DistillConfig, folder: Path, data: Data = "scenes") -> None:
    """Score and time the teacher, every short grid and the student; write `distill.json` and `distill.png`."""
    sets = report_samples(checkpoint, config, data)
    before = copy.copy(checkpoint)
    before.reference = teacher  # type: ignore[assignment]
    rows: list[tuple[str, int, Predict]] = [
        ("teacher", config.teacher_steps, reference_predictor(before, config.teacher_steps)),
        *(("teacher", n, reference_predictor(before, n)) for n in config.grid),
        *(("distilled", n, reference_predictor(checkpoint, n)) for n in config.grid),
        ("student", 1, student_predictor(checkpoint)),
    ]
    results = []
    for name, steps, predict in rows:
        began = time.perf_counter()
        pace = Pace(
            f"scoring the {name} at {counted(steps, 'step')} on pictures", sum(len(samples) for samples in sets)
        )
        scores = {samples.name: evaluate(predict, samples, pace).together.miou() for samples in sets}
        seconds = time.perf_counter() - began
        results.append({"model": name, "steps": steps, "miou": sum(scores.values()) / len(scores), "miou_by_set": scores,
                        "seconds": round(seconds, 2)})  # fmt: skip
    body = {"pictures_per_set": len(sets[0]), "sets": [samples.name for samples in sets], "rows": results}
    write_json(folder / "distill.json", body)
    print_table(results)
    _draw(results, folder / "distill.png")


def print_table(rows: list[dict[str, Any]]) -> None:
    """Every model and number of steps, and a warning when the student had nothing to learn from its teacher."""
    print(f"{'model':<10} {'steps':>5} {'mean IoU':>9} {'seconds':>8}")
    for row in rows:
        print(f"{row['model']:<10} {row['steps']:>5} {row['miou']:>9.3f} {row['seconds']:>8.2f}")
    teacher, student = rows[0]["miou"], rows[-1]["miou"]
    if teacher < student:
        print(f"warning: the teacher ({teacher:.3f}) is worse than the student ({student:.3f}): train the reference longer "
              "before distilling it, or keep the student you had", flush=True)  # fmt: skip


def _draw(rows: list[dict[str, object]], picture: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4))
    for name in dict.fromkeys(str(row["model"]) for row in rows):
        own = sorted((row for row in rows if row["model"] == name), key=lambda row: float(str(row["seconds"])))
        axes.plot([row["seconds"] for row in own], [row["miou"] for row in own], "o-", label=name)
        for row in own:
            axes.annotate(f"{row['steps']}", (float(str(row["seconds"])), float(str(row["miou"]))))
    axes.set(
        xlabel="seconds for all pictures and prompts",
        ylabel="mean IoU",
        xscale="log",
        title="quality and cost per number of steps",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    with replacing(picture) as path:
        figure.savefig(path, dpi=110, format="png")
    plt.close(figure)
