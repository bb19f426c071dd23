"""How good a stage's averaged weights are on held-out pictures while it trains, which were the best, and when it is enough.

A validation changes nothing of the training: it has the averaged weights, its own pictures, and leaves every random state as
it was. Several processes share its pictures and add up their counts, so that none waits for another's work.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from digseg_engine.evaluation.metrics import Score, Scores, matthews
from digseg_engine.evaluation.panel import sheet
from digseg_engine.evaluation.predictors import Predict
from digseg_engine.evaluation.protocols import Samples, Trial
from digseg_engine.evaluation.score import evaluate
from digseg_engine.files import replacing
from digseg_engine.training.averaging import Averaged
from digseg_engine.training.log import Log, Rows
from digseg_engine.training.sharding import gathered
from digseg_engine.training.state import BEST, link, put_trained, stored_validation, trained, write_tensors
from digseg_engine.training.trackers import log_picture

TABLE, PICTURE = "validation.csv", "validation.png"
SUMMED = ("intersection", "predicted", "truth")  # counts that the mean IoU is made of
Loss = Callable[[nn.Module, int], tuple[Tensor, Any]]


@dataclass(frozen=True)
class Validator:
    """What a stage is validated on, and how its module answers.

    predictor: the averaged module -> picture and prompts to logits. losses: the stage's own loss on held-out batches, one per
    data set, of which the first `batches` are asked.
    """

    sets: Sequence[Samples]
    predictor: Callable[[Any], Predict]
    losses: Sequence[Loss] = ()
    batches: int = 0


@dataclass(frozen=True)
class Figures:
    """One validation. NaN where nothing can be said: no prompt occurs, or all occur in all pictures."""

    miou: float  # mean over the sets
    presence_mcc: float  # over all (picture, prompt) pairs of all sets
    loss: float | None  # mean over the held-out batches, if there are any
    scores: Mapping[str, Scores]

    def named(self) -> dict[str, float]:
        found = {"miou": self.miou, "presence_mcc": self.presence_mcc}
        return found if self.loss is None else {**found, "loss": self.loss}


class Validation:
    """The validations of one stage: due every `every` steps and after the last one, off where `validator` is None.

    Leaves `validation.csv` (step: steps done), `validation.png` and the best averaged weights, `best.safetensors`.
    """

    def __init__(
        self, validator: Validator | None, every: int, patience: int, folder: Path, accelerator: Accelerator
    ) -> None:
        self.validator = validator if every else None
        self.every, self.patience, self.folder, self.accelerator = every, patience, folder, accelerator
        self.best_step, self.best_miou, self.stale = 0, -math.inf, 0  # stale: validations since the best one
        self.said = ""  # for the progress line
        self.rows: Rows | None = None

    @property
    def best(self) -> Path | None:
        """The file of the best weights, if there are any."""
        return self.folder / f"{BEST}.safetensors" if self.best_step else None

    @property
    def exhausted(self) -> bool:
        """Whether the stage has gone on for too long without improving."""
        return self.validator is not None and 0 < self.patience <= self.stale

    def due(self, done: int, last: int) -> bool:
        return self.validator is not None and (done % self.every == 0 or done == last)

    def record(self) -> dict[str, Any] | None:
        """What a resumed stage must know (plain JSON)."""
        if self.validator is None:
            return None
        best = {"best_step": self.best_step, "best_miou": self.best_miou} if self.best_step else {}
        return {**best, "stale": self.stale}

    def restore(self, state: Path | None, start: int) -> None:
        """Go on as the run that saved `state` would have: its best weights, its patience; None: from the beginning."""
        stored = {} if state is None or self.validator is None else stored_validation(state)
        self.stale = int(stored.get("stale", 0))
        self.best_step, self.best_miou = int(stored.get("best_step", 0)), float(stored.get("best_miou", -math.inf))
        if not self.accelerator.is_main_process:
            return
        if self.validator is not None:
            self.rows = Rows(self.folder / TABLE, start)
        if state is None or self.best is None:
            (self.folder / f"{BEST}.safetensors").unlink(missing_ok=True)
        else:
            with replacing(self.best) as path:
                link(state / f"{BEST}.safetensors", path)

    def run(self, average: Averaged, log: Log, name: str, done: int) -> Figures | None:
        """Validate after `done` steps; every process calls it and comes to the same decisions. None where it is off."""
        if self.validator is None:
            return None
        with undisturbed(self.accelerator.device), at_hand(average, self.accelerator.device) as module:
            predict = self.validator.predictor(module)
            figures = validate(self.validator, predict, module, self.accelerator)
            better = figures.miou > self.best_miou
            self.stale = 0 if better else self.stale + 1
            if better:
                self.best_step, self.best_miou = done, figures.miou
            self.said = f"mIoU {figures.miou:.3f}"
            if self.accelerator.is_main_process:
                self._write(figures, module if better else None, log, done)
                picture = sheet([Trial(each.name, each, predict) for each in self.validator.sets], figures.scores)
                with replacing(self.folder / PICTURE) as path:
                    picture.save(path, format="PNG")
                log_picture(log.trackers, "validation", picture, done)
                print(f"{name}: after step {done}: {self._sentence(figures)}", flush=True)
        return figures

    def _write(self, figures: Figures, better: nn.Module | None, log: Log, done: int) -> None:
        known = {key: value for key, value in figures.named().items() if not math.isnan(value)}
        if better is not None and self.best is not None:
            about = {"step": str(done), "miou": repr(figures.miou)}
            write_tensors(self.best, trained(better), about)
        if self.rows is not None:
            per_set = {f"miou {key}": scores.together.miou() for key, scores in figures.scores.items()}
            cells = {**dict.fromkeys(figures.named(), ""), **known, **(per_set if len(per_set) > 1 else {})}
            self.rows.add({"step": done, "seconds": log.seconds(), **cells})
        log.track({f"validation/{key}": value for key, value in known.items()}, done)

    def _sentence(self, figures: Figures) -> str:
        own = ", ".join(f"{name} {scores.together.miou():.3f}" for name, scores in figures.scores.items())
        parts = [f"mean IoU {figures.miou:.3f}" + (f" ({own})" if len(figures.scores) > 1 else "")]
        parts += [] if math.isnan(figures.presence_mcc) else [f"presence MCC {figures.presence_mcc:.3f}"]
        parts += [] if figures.loss is None else [f"loss {figures.loss:.4f}"]
        best = "" if not self.best_step else f", best {self.best_miou:.3f} after step {self.best_step}"
        return f"validation {', '.join(parts)}" + ("; the best so far" if not self.stale else best)

    def end(self, module: nn.Module, name: str, done: int) -> None:
        """Give the module the best weights there were, if the stage was validated at all."""
        if self.best is None:
            return
        put_trained(module, load_file(self.best))
        if self.accelerator.is_main_process and self.best_step != done:
            print(f"{name}: ends with the weights after step {self.best_step}, mean IoU {self.best_miou:.3f}, the best of "
                  f"{TABLE}", flush=True)  # fmt: skip


def best_of(folder: Path) -> dict[str, float] | None:
    """Step and mean IoU of the best weights that a stage left in `folder`; None where it was not validated."""
    path = folder / f"{BEST}.safetensors"
    if not path.is_file():
        return None
    with safe_open(path, "pt") as file:
        about = file.metadata()
    return {"step": int(about["step"]), "miou": float(about["miou"])}


def validate(validator: Validator, predict: Predict, module: nn.Module, accelerator: Accelerator) -> Figures:
    """Score the module on all sets; the processes share the pictures and end with the same figures."""
    rank, shares = accelerator.process_index, accelerator.num_processes
    parts: list[Tensor] = []
    for samples in validator.sets:
        mine = range(rank, len(samples), shares)
        found = evaluate(predict, samples, numbers=mine).together
        ious = torch.zeros(len(samples), dtype=torch.float64)
        ious[rank::shares] = torch.tensor(found.per_picture, dtype=torch.float64)
        counts = [found.counts[key] for key in SUMMED]
        parts += [*(torch.from_numpy(each).double().flatten() for each in (*counts, found.presence)), ious]
    with torch.no_grad():
        asked = [loss(module, n)[0] for loss in validator.losses for n in range(rank, validator.batches, shares)]
    parts.append(torch.tensor([sum(float(value) for value in asked)], dtype=torch.float64))
    summed = torch.cat(parts)
    if shares > 1:
        summed = accelerator.reduce(summed.to(accelerator.device), "sum").cpu()
    pieces = iter(summed.split([len(part) for part in parts]))
    scores = {samples.name: _score(samples, pieces) for samples in validator.sets}
    values = [scores[samples.name].together.miou() for samples in validator.sets]
    known = [value for value in values if not math.isnan(value)]
    presence = np.sum([score.together.presence for score in scores.values()], axis=0)
    batches = len(validator.losses) * validator.batches
    loss = float(next(pieces)) / batches if batches else None
    return Figures(sum(known) / len(known) if known else math.nan, matthews(presence), loss, scores)


def _score(samples: Samples, pieces: Iterator[Tensor]) -> Scores:
    """The score of a set from its sums, in the order that `validate` put them in."""
    score = Score([query.name for query in samples.queries], exclusive=samples.rule != "each", outlines=False)
    for key in SUMMED:
        score.counts[key] = next(pieces).long().numpy()
    score.presence = next(pieces).long().reshape(2, 2).numpy()
    score.per_picture = next(pieces).tolist()
    return Scores(score, score)


@contextmanager
def at_hand(average: Averaged, device: torch.device) -> Iterator[nn.Module]:
    """The averaged module, ready to answer on `device`. What of it waits in the CPU's memory visits it: between two steps there
    are no gradients, so that there is room. Of a divided one, every process gets it whole."""
    module: nn.Module = average.module
    if average.whole is not None:
        put_trained(average.whole, gathered(trained(module)))
        module = average.whole
    training = module.training
    away = [
        (tensor, tensor.device) for tensor in chain(module.parameters(), module.buffers()) if tensor.device != device
    ]
    for tensor, _ in away:
        tensor.data = tensor.data.to(device)
    module.eval()
    try:
        yield module
    finally:
        for tensor, home in away:
            tensor.data = tensor.data.to(home)
        module.train(training)


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Whatever happens inside, all random states are afterwards what they were before."""
    python, words = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(words)
