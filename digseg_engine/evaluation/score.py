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

from digseg_engine.evaluation.metrics import Score
from digseg_engine.evaluation.predictors import Predict, choose_predictor, decide
from digseg_engine.evaluation.report import write_report
from digseg_engine.evaluation.samples import Samples, open_samples
from digseg_engine.training.scenes import SEEN_PAIRS, UNSEEN_PAIRS


def evaluate(predict: Predict, samples: Samples, tick: Callable[[int], None] = lambda done: None) -> Score:
    """Score one predictor on one test set."""
    prompts = [query.text for query in samples.queries]
    score = Score([query.name for query in samples.queries], samples.rule != "each")
    for i in range(len(samples)):
        one = samples[i]
        score.add(decide(predict(one.image, prompts), samples.rule), one.truth, one.valid)
        tick(1)
    return score


def figures(name: str, score: Score) -> dict[str, float]:
    """The headline figures of a test set."""
    if name.startswith("objects"):
        found = {f"{name}, seen pairs": score.miou(SEEN_PAIRS), f"{name}, unseen pairs": score.miou(UNSEEN_PAIRS)}
    else:
        found = {name: score.miou()}
    more = {
        "mIoU counting absent names": score.miou_counting_absent(), "cIoU": score.ciou(), "Dice": score.dice(),
        "boundary IoU": score.boundary_iou(), "false area": score.false_area(),
    }  # fmt: skip
    return {**found, **{f"{name}, {key}": value for key, value in more.items()}}


def score_model(
    model: Path | None, data: str, count: int, size: int | None, reference_steps: int, report: Path | None,
    layout: str | None = None, split: str | None = None,
) -> dict[str, Score]:  # fmt: skip
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


def _print(scores: dict[str, Score], title: str, seconds: float) -> None:
    console = Console()
    table = Table(title=title, title_justify="left")
    for column in ("test set", "mIoU", "cIoU", "Dice", "boundary", "false area"):
        table.add_column(column, justify="left" if column == "test set" else "right", no_wrap=True)
    for name, score in scores.items():
        rows = {name: score.miou()}
        if name.startswith("objects"):
            rows = {f"{name}: seen": score.miou(SEEN_PAIRS), f"{name}: unseen": score.miou(UNSEEN_PAIRS)}
        rest = [f"{value:.4f}" for value in (score.ciou(), score.dice(), score.boundary_iou())]
        for i, (row, value) in enumerate(rows.items()):
            shared = [*rest, f"{100 * score.false_area():.2f} %"] if i == 0 else []
            table.add_row(row, f"{value:.4f}", *shared)
    console.print(table)
    console.print(f"{seconds:.1f} s", highlight=False)
