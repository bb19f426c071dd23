"""`digseg eval --wordings`: the same pictures asked as people write, and what that costs."""

import numpy as np
import pytest

from digseg_engine.data.query import Query
from digseg_engine.evaluation.protocols import Sample, Trial
from digseg_engine.evaluation.rewording import WORDINGS, reworded, say, shares
from digseg_engine.evaluation.score import evaluate


class Halves:
    """Two pictures whose left half is a road."""

    name, rule, notes = "halves", "each", ("said once",)
    queries = (Query("road", "road"),)

    def __len__(self):
        return 2

    def __getitem__(self, i):
        truth = np.zeros((1, 8, 8), bool)
        truth[:, :, :4] = True
        return Sample(f"{i}", np.zeros((8, 8, 3), np.uint8), truth)


def predict(image, prompts):
    """Right for the plain prompt and for a photo of it, half of it for what is segmented, nothing for anything else."""
    columns = {"road": 4, "a photo of a road": 4, "segment the road": 2}
    return np.stack(
        [np.where(np.arange(8)[None].repeat(8, 0) < columns.get(prompt, 0), 1.0, -1.0) for prompt in prompts]
    )


def test_every_set_is_asked_in_every_wording_and_compared_with_its_plain_prompt():
    sets = reworded([Halves()])
    assert [each.name for each in sets] == ["halves", *(f"halves, {say(wording, 'X')}" for wording in WORDINGS)]
    assert [each.queries[0].text for each in sets][1:] == ["a photo of a road", "segment the road", '"road"', "roads"]
    assert {each.queries[0].name for each in sets} == {"road"}
    assert [said for each in sets for said in each.notes] == ["said once"]
    trials = [Trial(f"{each.name}, 4 steps", each, predict) for each in sets]  # as one of several predictors names them
    found = shares(trials, {trial.name: evaluate(predict, trial.samples) for trial in trials})
    assert list(found) == [f"halves, {say(wording, 'X')}, 4 steps" for wording in WORDINGS]
    assert list(found.values()) == pytest.approx([1.0, 0.5, 0.0, 0.0])
