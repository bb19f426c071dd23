"""`digseg eval`: every sample through one predictor, counts per test set, table, JSON, CSV and pictures."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress, TaskID

from digseg_engine.console import Pace, note, telling
from digseg_engine.evaluation.answers import Answer
from digseg_engine.evaluation.counting import count_labels
from digseg_engine.evaluation.metrics import FALSE_PIXELS, Score, Scores, labels_of
from digseg_engine.evaluation.predictors import Predict, choose_predictors
from digseg_engine.evaluation.presets import FIGURES, Protocol
from digseg_engine.evaluation.protocols import LabelledPictures, Samples, Trial, open_samples
from digseg_engine.evaluation.report import write_report
from digseg_engine.evaluation.rewording import reworded, shares
from digseg_engine.evaluation.tables import parts_of, print_scores, print_shares
from digseg_engine.evaluation.views import WHOLE, Views
from digseg_engine.images import SQUEEZED
from digseg_engine.words import counted
from digseg_engine.working_size import WorkingSize


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
            scores.together.add(masks, sample.truth, sample.valid, answer.present)
            scores.alone.add(masks, sample.truth, sample.valid, answer.present)
        else:
            truth = labels_of(sample.truth) if sample.labels is None else sample.labels
            chosen, alone = count_labels(answer, truth, sample.valid, samples.rule, scores.together.calibration)
            scores.together.add_labels(chosen, truth, sample.valid, answer.present)
            scores.alone.add_counts(alone, answer.present)
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
    }  # fmt: skip
    for suffix, score in (("", s), (", each prompt alone", scores.alone)):
        extra |= {f"{key}{suffix}": value for key, value in presence_figures(score).items()}
    if s.exclusive:
        extra["calibration error"] = s.calibration.error()
    return {**found, **{f"{name}, {key}": value for key, value in extra.items()}}


def presence_figures(score: Score) -> dict[str, float]:
    """How well it is told what is in a picture, and that together with the masks."""
    return {"presence MCC": score.presence_mcc(), "presence precision": score.presence_precision(),
            "presence recall": score.presence_recall(), "pmF1": score.pm_f1(), "cgF1": score.cg_f1()}  # fmt: skip


@dataclass(frozen=True)
class Request:
    """What `digseg eval` is asked: a model, data, how many pictures of them and how they are shown.

    size: pixels of the longer side, None for the model's own; count: `protocols.EVERY` for all pictures of a folder;
    reference_steps: of the reference, each of which is scored; none for the student.
    """

    model: Path | None = None
    data: str = "scenes"
    count: int = 100
    size: int | None = None
    reference_steps: tuple[int, ...] = ()
    layout: str | None = None
    split: str | None = None
    device: str | None = None
    seed: int = 0
    views: Views = WHOLE
    protocol: Protocol | None = None
    wordings: bool = False
    backend: str | None = None

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

    def about(self, name: str, size: WorkingSize, sets: list[Samples]) -> dict[str, Any]:
        """What a report says of how it was made."""
        return {
            "model": name, "data": self.data, "pictures": {s.name: len(s) for s in sets}, "size": size.usual,
            "size_max": size.largest,
            "views": asdict(self.views), "seed": self.seed, "reference_steps": list(self.reference_steps),
            "device": self.device or "cpu", "backend": self.backend, "torch": torch.__version__,
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "notes": [said for s in sets for said in s.notes], "false_alarm_pixels": FALSE_PIXELS,
        }  # fmt: skip


def score_model(request: Request, report: Path | None = None) -> dict[str, Scores]:
    """Score, print, optionally write `report` (.json) with its table and pictures beside it; returns the scores per trial."""
    protocol = request.protocol
    views = request.views if protocol is None else protocol.views(request.views)
    request = replace(request, views=views)
    with telling():
        predictors, name, working = choose_predictors(
            request.model, request.reference_steps, request.size, request.device, views, request.backend
        )
    sets = request.samples(working.usual)
    for samples in sets:
        for said in samples.notes:
            note("digseg", f"note: {said}")
    squeezed = Squeezed(views, working)
    trials = {steps: [_trial(samples, squeezed.watching(predict), steps, len(predictors)) for samples in sets]
              for steps, predict in predictors.items()}  # fmt: skip
    asked = [trial for each in zip(*trials.values()) for trial in each]  # the steps of a set one after the other
    scores, seconds = _score_all(asked)
    title = f"{name}: {len(sets[0])} pictures per set at {working}"
    print_scores(scores, title, seconds, classes=len(predictors) == 1)
    about = request.about(name, working, sets)
    if protocol is None and (hint := squeezed.hint):
        about["notes"].append(hint)
        note("digseg", f"note: {hint}")
    about["seconds"] = seconds
    about["figures"] = {key: value for each in asked for key, value in figures(each.name, scores[each.name]).items()}
    if request.wordings:
        about["wordings"] = {key: value for each in trials.values() for key, value in shares(each, scores).items()}
        print_shares(about["wordings"])
    if protocol is not None:
        own = {steps: {trial.name: scores[trial.name] for trial in each} for steps, each in trials.items()}
        about["protocol"] = _by_protocol(protocol, own, sum(map(len, sets)), about["notes"])
    if report is not None:
        for path in write_report(report, asked, scores, about):
            print(f"wrote {path}")
    return scores


class Squeezed:
    """Counts the pictures that are shown to a predictor much smaller than they are."""

    def __init__(self, views: Views, size: WorkingSize) -> None:
        self.views, self.size, self.asked, self.found = views, size, 0, 0

    def watching(self, predict: Predict) -> Predict:
        def watched(image: NDArray[np.uint8], prompts: list[str]) -> Answer:
            self.asked += 1
            shape = int(image.shape[0]), int(image.shape[1])
            self.found += self.views.reduction(shape, self.size.of(*shape), 1) >= SQUEEZED
            return predict(image, prompts)

        return watched

    @property
    def hint(self) -> str:
        """What to try where half of the pictures or more are reduced so far that small things in them are lost."""
        if not self.found or 2 * self.found < self.asked:
            return ""
        share = f"{100 * self.found / self.asked:.0f} % of the pictures"
        return (f"{share} are worked at a third of their size or less ({self.size}), where small things are lost; try "
                "windows at their own size (--slide), or a larger --size")  # fmt: skip


def _trial(samples: Samples, predict: Predict, steps: int, several: int) -> Trial:
    return Trial(f"{samples.name}, {counted(steps, 'step')}" if several > 1 else samples.name, samples, predict)


def _by_protocol(
    protocol: Protocol, scores: Mapping[int, Mapping[str, Scores]], scored: int, notes: list[str]
) -> dict[str, Any]:
    """Print the protocol's figure, for each number of steps where there are several, and return what a report says of it;
    scored: pictures; notes: what must be said beside it is added."""
    values = {steps: protocol.result(own) for steps, own in scores.items()}
    figure, several = FIGURES[protocol.figure], len(values) > 1
    for steps, value in values.items():
        at = f" in {counted(steps, 'step')}" if several else ""
        print(f"protocol {protocol.name}: {figure} {value:.4f}{at} over {scored} pictures ({protocol.note})")
    if said := protocol.shortfall(scored):
        notes.append(said)
        note("digseg", f"note: {said}")
    reached: Any = {str(steps): value for steps, value in values.items()} if several else next(iter(values.values()))
    return {"name": protocol.name, "about": str(protocol), "figure": figure, "value": reached}


def _score_all(trials: Sequence[Trial]) -> tuple[dict[str, Scores], dict[str, float]]:
    """Every trial, with progress: its scores and the seconds it took."""
    scores, seconds = {}, {}
    with Progress(transient=True) as bar:
        for trial in trials:
            task = bar.add_task(trial.name, total=len(trial.samples))
            pace = Pace(f"scoring {trial.name}", len(trial.samples), speaks=not bar.console.is_terminal)

            def tick(done: int, task: TaskID = task, pace: Pace = pace) -> None:
                bar.advance(task, done)
                pace(done)

            began = time.perf_counter()
            scores[trial.name] = evaluate(trial.predict, trial.samples, tick)
            seconds[trial.name] = round(time.perf_counter() - began, 2)
    return scores, seconds
