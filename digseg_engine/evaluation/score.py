"""`digseg eval`: every sample through one predictor, counts per test set, table, JSON, CSV and pictures."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from digseg_engine.evaluation.metrics import Score, Scores
from digseg_engine.evaluation.predictors import Predict, choose_predictor, decide
from digseg_engine.evaluation.report import write_report
from digseg_engine.evaluation.samples import Samples, open_samples
from digseg_engine.worlds.scenes import SEEN_PAIRS, UNSEEN_PAIRS


def evaluate(predict: Predict, samples: Samples, tick: Callable[[int], None] = lambda done: None) -> Scores:
    """Score one predictor on one test set."""
    prompts, names = [query.text for query in samples.queries], [query.name for query in samples.queries]
    scores = Scores(Score(names, exclusive=samples.rule != "each"), Score(names))
    for i in range(len(samples)):
        one = samples[i]
        logits = predict(one.image, prompts)
        scores.together.add(decide(logits, samples.rule), one.truth, one.valid)
        scores.alone.add(decide(logits, "each"), one.truth, one.valid)
        tick(1)
    return scores


def parts_of(name: str) -> dict[str, tuple[str, ...] | None]:
    """The groups of names that a test set's mean IoU is given for."""
    return (
        {f"{name}, seen pairs": SEEN_PAIRS, f"{name}, unseen pairs": UNSEEN_PAIRS}
        if "objects" in name
        else {name: None}
    )


def figures(name: str, scores: Scores) -> dict[str, float]:
    """The headline figures of a test set."""
    found = {}
    for part, names in parts_of(name).items():
        found[part], found[f"{part}, each prompt alone"] = scores.together.miou(names), scores.alone.miou(names)
    s = scores.together
    more = {
        "mIoU counting absent names": s.miou_counting_absent(), "cIoU": s.ciou(), "Dice": s.dice(),
        "boundary IoU": s.boundary_iou(), "false area, each prompt alone": scores.alone.false_area(),
    }  # fmt: skip
    return {**found, **{f"{name}, {key}": value for key, value in more.items()}}


def score_model(
    model: Path | None, data: str, count: int, size: int | None, reference_steps: int, report: Path | None,
    layout: str | None = None, split: str | None = None,
) -> dict[str, Scores]:  # fmt: skip
    """Score, print, optionally write `report` (.json) with a .csv and a .png beside it; returns the scores per set."""
    predict, name, working = choose_predictor(model, reference_steps, size)
    sets = open_samples(data, count, working, layout, split)
    scores, began = {}, time.perf_counter()
    with Progress(transient=True) as bar:
        for samples in sets:
            task = bar.add_task(samples.name, total=len(samples))
            scores[samples.name] = evaluate(predict, samples, lambda done, task=task: bar.advance(task, done))  # type: ignore[misc]
    seconds = time.perf_counter() - began
    _print(scores, f"{name}: {len(sets[0])} pictures per set at {working} px", seconds)
    if report is not None:
        about: dict[str, Any] = {
            "model": name, "data": data, "pictures": {s.name: len(s) for s in sets}, "size": working,
            "reference_steps": reference_steps, "torch": torch.__version__,
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        }  # fmt: skip
        about["figures"] = {key: value for each in sets for key, value in figures(each.name, scores[each.name]).items()}
        for path in write_report(report, sets, scores, predict, about):
            print(f"wrote {path}")
    return scores


def _print(scores: dict[str, Scores], title: str, seconds: float) -> None:
    console = Console()
    table = Table(title=title, title_justify="left")
    for column in ("test set", "mIoU", "alone", "cIoU", "Dice", "edge", "false"):
        table.add_column(column, justify="left" if column == "test set" else "right", no_wrap=True)
    for name, both in scores.items():
        s = both.together
        rest = [f"{value:.3f}" for value in (s.ciou(), s.dice(), s.boundary_iou())]
        for i, (part, names) in enumerate(parts_of(name).items()):
            shared = [*rest, f"{100 * both.alone.false_area():.2f} %"] if i == 0 else []
            table.add_row(part.removesuffix(" pairs"), f"{s.miou(names):.3f}", f"{both.alone.miou(names):.3f}", *shared)
    console.print(table)
    console.print("mIoU: one label per pixel from all prompts; alone, false: every prompt's own mask", highlight=False)
    console.print(f"{seconds:.1f} s", highlight=False)
