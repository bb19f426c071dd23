"""`digseg eval`: every sample through one predictor, counts per test set, table, JSON, CSV and pictures."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress, TaskID

from digseg_engine.console import Pace, note, telling
from digseg_engine.evaluation.answers import Answer
from digseg_engine.evaluation.counting import count_labels
from digseg_engine.evaluation.metrics import FALSE_PIXELS, Score, Scores, labels_of
from digseg_engine.evaluation.predictors import Predict, choose_predictor
from digseg_engine.evaluation.presets import FIGURES, Protocol
from digseg_engine.evaluation.protocols import LabelledPictures, Samples, open_samples
from digseg_engine.evaluation.report import write_report
from digseg_engine.evaluation.rewording import reworded, shares
from digseg_engine.evaluation.tables import parts_of, print_scores, print_shares
from digseg_engine.evaluation.views import WHOLE, Views


def evaluate(
    predict: Predict, samples: Samples, tick: Callable[[int], None] = lambda done: None,
    numbers: Iterable[int] | None = None,
) -> Scores:  # fmt: skip
    """Score one predictor on one test set, or on the samples of these numbers."""
    prompts, names = [query.text for query in samples.queries], [query.name for query in samples.queries]
    scores = Scores(Score(names, exclusive=samples.rule != "each"), Score(names, outlines=False))
    for i in range(len(samples)) if numbers is None else numbers:
        sample = samples[i]
        answer = Answer.of(predict(sample.image, prompts))
        if samples.rule == "each":
            masks = answer.masks()
            scores.together.add(masks, sample.truth, sample.valid)
            scores.alone.add(masks, sample.truth, sample.valid)
        else:
            truth = labels_of(sample.truth) if sample.labels is None else sample.labels
            chosen, alone = count_labels(answer, truth, sample.valid, samples.rule, scores.together.calibration)
            scores.together.add_labels(chosen, truth, sample.valid)
            scores.alone.add_counts(alone)
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
        "mean IoU of a picture": s.picture_iou(), "thresholded Jaccard": s.thresholded_jaccard(),
        "presence MCC": s.presence_mcc(), "presence MCC, each prompt alone": scores.alone.presence_mcc(),
    }  # fmt: skip
    if s.exclusive:
        extra["calibration error"] = s.calibration.error()
    return {**found, **{f"{name}, {key}": value for key, value in extra.items()}}


@dataclass(frozen=True)
class Request:
    """What `digseg eval` is asked: a model, data, how many pictures of them and how they are shown.

    size: pixels of the longer side, None for the model's own; count: `protocols.EVERY` for all pictures of a folder.
    """

    model: Path | None = None
    data: str = "scenes"
    count: int = 100
    size: int | None = None
    reference_steps: int = 0
    layout: str | None = None
    split: str | None = None
    device: str | None = None
    seed: int = 0
    views: Views = WHOLE
    protocol: Protocol | None = None
    wordings: bool = False

    def samples(self, size: int) -> list[Samples]:
        """The test sets, with `wordings` each in other words too. Raises UsageError or InputError."""
        plain = self._samples(size)
        return reworded(plain) if self.wordings else plain

    def _samples(self, size: int) -> list[Samples]:
        if self.protocol is None:
            return open_samples(self.data, self.count, size, self.layout, self.split, self.seed)
        split = self.split or self.protocol.split
        sets: list[Samples] = []
        for folder in self.protocol.folders(Path(self.data)):
            layout = self.protocol.layout_of(folder, self.layout)
            opened = LabelledPictures(folder, self.count, layout, split, self.seed)
            opened.name = f"{folder.name}, {opened.name}" if self.protocol.many else opened.name
            sets.append(opened)
        return sets

    def about(self, name: str, size: int, sets: list[Samples]) -> dict[str, Any]:
        """What a report says of how it was made."""
        return {
            "model": name, "data": self.data, "pictures": {s.name: len(s) for s in sets}, "size": size,
            "views": asdict(self.views), "seed": self.seed, "reference_steps": self.reference_steps,
            "device": self.device or "cpu", "torch": torch.__version__,
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "notes": [said for s in sets for said in s.notes], "false_alarm_pixels": FALSE_PIXELS,
        }  # fmt: skip


def score_model(request: Request, report: Path | None = None) -> dict[str, Scores]:
    """Score, print, optionally write `report` (.json) with its table and pictures beside it; returns the scores per set."""
    protocol = request.protocol
    views = request.views if protocol is None else protocol.views(request.views)
    request = replace(request, views=views)
    with telling():
        predict, name, working = choose_predictor(
            request.model, request.reference_steps, request.size, request.device, views
        )
    sets = request.samples(working)
    for samples in sets:
        for said in samples.notes:
            note("digseg", f"note: {said}")
    began = time.perf_counter()
    scores = _score_all(predict, sets)
    seconds = time.perf_counter() - began
    print_scores(scores, f"{name}: {len(sets[0])} pictures per set at {working} px", seconds)
    about = request.about(name, working, sets)
    about["figures"] = {key: value for each in sets for key, value in figures(each.name, scores[each.name]).items()}
    if request.wordings:
        about["wordings"] = shares(sets, scores)
        print_shares(about["wordings"])
    if protocol is not None:
        value = protocol.result(scores)
        about["protocol"] = {
            "name": protocol.name,
            "about": str(protocol),
            "figure": FIGURES[protocol.figure],
            "value": value,
        }
        scored = sum(map(len, sets))
        print(
            f"protocol {protocol.name}: {FIGURES[protocol.figure]} {value:.4f} over {scored} pictures ({protocol.note})"
        )
        if said := protocol.shortfall(scored):
            about["notes"].append(said)
            note("digseg", f"note: {said}")
    if report is not None:
        for path in write_report(report, sets, scores, predict, about):
            print(f"wrote {path}")
    return scores


def _score_all(predict: Predict, sets: list[Samples]) -> dict[str, Scores]:
    """Every set, with progress."""
    scores = {}
    with Progress(transient=True) as bar:
        for samples in sets:
            task = bar.add_task(samples.name, total=len(samples))
            pace = Pace(f"scoring {samples.name}", len(samples), speaks=not bar.console.is_terminal)

            def tick(done: int, task: TaskID = task, pace: Pace = pace) -> None:
                bar.advance(task, done)
                pace(done)

            scores[samples.name] = evaluate(predict, samples, tick)
    return scores
