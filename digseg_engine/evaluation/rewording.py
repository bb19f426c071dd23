"""The same test set asked in other words: what a wording that people use costs against the plain prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from digseg_engine.data.query import Query, plural
from digseg_engine.evaluation.metrics import Scores
from digseg_engine.evaluation.predictors import Rule
from digseg_engine.evaluation.protocols import Sample, Samples, Trial

PLURAL = "{}s"  # stands for the plural, which is not always made with an s
WORDINGS = ("a photo of a {}", "segment the {}", '"{}"', PLURAL)


def say(wording: str, text: str) -> str:
    """A prompt in a wording."""
    return plural(text) if wording == PLURAL else wording.format(text)


@dataclass(frozen=True)
class Reworded:
    """A test set whose prompts are said in a wording; pictures and truth are the same."""

    samples: Samples
    wording: str

    @property
    def name(self) -> str:
        return f"{self.samples.name}, {say(self.wording, 'X')}"

    @property
    def queries(self) -> Sequence[Query]:
        return [Query(say(self.wording, query.text), query.name) for query in self.samples.queries]

    @property
    def rule(self) -> Rule:
        return self.samples.rule

    @property
    def notes(self) -> Sequence[str]:
        return ()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> Sample:
        return self.samples[i]


def reworded(sets: Sequence[Samples]) -> list[Samples]:
    """Every set, and after it the same in every wording of `WORDINGS`."""
    return [each for samples in sets for each in (samples, *(Reworded(samples, wording) for wording in WORDINGS))]


def shares(trials: Sequence[Trial], scores: Mapping[str, Scores]) -> dict[str, float]:
    """Mean IoU of every set in another wording over that of its plain prompts, asked of one predictor; by the name of the
    trial; NaN over nothing."""
    plain = {id(trial.samples): scores[trial.name].together.miou() for trial in trials}
    found = {}
    for trial in trials:
        if isinstance(trial.samples, Reworded):
            whole = plain[id(trial.samples.samples)]
            found[trial.name] = scores[trial.name].together.miou() / whole if whole else float("nan")
    return found
