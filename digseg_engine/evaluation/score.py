"""`digseg eval`: every sample through one predictor, counts per test set, table, JSON, CSV and pictures."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress, TaskID

from digseg_engine.console import Pace, note, telling
from digseg_engine.evaluation.metrics import FALSE_PIXELS, Score, Scores, labels_of
from digseg_engine.evaluation.predictors import Predict, choose_labels, choose_predictor, decide
from digseg_engine.evaluation.protocols import Samples, open_samples
from digseg_engine.evaluation.report import write_report
from digseg_engine.evaluation.tables import parts_of, print_scores


def evaluate(predict: Predict, samples: Samples, tick: Callable[[int], None] = lambda done: None) -> Scores:
    """Score one predictor on one test set."""
    prompts, names = [query.text for query in samples.queries], [query.name for query in samples.queries]
    scores = Scores(Score(names, exclusive=samples.rule != "each"), Score(names, outlines=False))
    for i in range(len(samples)):
        sample = samples[i]
        logits = predict(sample.image, prompts)
        if samples.rule == "each":
            scores.together.add(decide(logits, "each"), sample.truth, sample.valid)
        else:
            truth = labels_of(sample.truth) if sample.labels is None else sample.labels
            scores.together.add_labels(choose_labels(logits, samples.rule), truth, sample.valid)
        scores.alone.add(decide(logits, "each"), sample.truth, sample.valid)
        tick(1)
    return scores


def figures(name: str, scores: Scores) -> dict[str, float]:
    """The headline figures of a test set."""
    found = {}
    for part, names in parts_of(name).items():
        found[part], found[f"{part}, each prompt alone"] = scores.together.miou(names), scores.alone.miou(names)
    s = scores.together
    extra = {
        "mIoU counting absent names": s.miou_counting_absent(), "cIoU": s.ciou(), "Dice": s.dice(),
        "boundary IoU": s.boundary_iou(), "false area, each prompt alone": scores.alone.false_area(),
        "false alarms, each prompt alone": scores.alone.false_rate(),
        "pictures with a false alarm, each prompt alone": scores.alone.false_picture_rate(),
    }  # fmt: skip
    return {**found, **{f"{name}, {key}": value for key, value in extra.items()}}


def score_model(
    model: Path | None, data: str, count: int, size: int | None, reference_steps: int, report: Path | None,
    layout: str | None = None, split: str | None = None, device: str | None = None,
) -> dict[str, Scores]:  # fmt: skip
    """Score, print, optionally write `report` (.json) with a .csv and a .png beside it; returns the scores per set."""
    with telling():
        predict, name, working = choose_predictor(model, reference_steps, size, device)
    sets = open_samples(data, count, working, layout, split)
    for samples in sets:
        for said in samples.notes:
            note("digseg", f"note: {said}")
    scores, began = {}, time.perf_counter()
    with Progress(transient=True) as bar:
        for samples in sets:
            task = bar.add_task(samples.name, total=len(samples))
            pace = Pace(f"scoring {samples.name}", len(samples), speaks=not bar.console.is_terminal)

            def tick(done: int, task: TaskID = task, pace: Pace = pace) -> None:
                bar.advance(task, done)
                pace(done)

            scores[samples.name] = evaluate(predict, samples, tick)
    seconds = time.perf_counter() - began
    print_scores(scores, f"{name}: {len(sets[0])} pictures per set at {working} px", seconds)
    if report is not None:
        about: dict[str, Any] = {
            "model": name, "data": data, "pictures": {s.name: len(s) for s in sets}, "size": working,
            "reference_steps": reference_steps, "device": device or "cpu", "torch": torch.__version__,
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "notes": [said for s in sets for said in s.notes], "false_alarm_pixels": FALSE_PIXELS,
        }  # fmt: skip
        about["figures"] = {key: value for each in sets for key, value in figures(each.name, scores[each.name]).items()}
        for path in write_report(report, sets, scores, predict, about):
            print(f"wrote {path}")
    return scores
