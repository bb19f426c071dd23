"""The bundled weights still reach what is written of them, on ten test scenes of every set."""

import json
from pathlib import Path

import pytest

from digseg_engine.evaluation.predictors import student_predictor
from digseg_engine.evaluation.protocols import open_samples
from digseg_engine.evaluation.score import evaluate, figures

ROOT = Path(__file__).resolve().parent.parent.parent
STORED = json.loads((ROOT / "benchmarks" / "results" / "eval-tiny-ten.json").read_text())


@pytest.fixture(scope="module")
def measured(tiny):
    """The figures that `digseg eval --count 10 --report FILE` writes."""
    predict, found = student_predictor(tiny), {}
    for samples in open_samples("scenes", 10, tiny.config.image_size):
        found.update(figures(samples.name, evaluate(predict, samples)))
    return found


def test_the_bundled_weights_reach_the_stored_figures_on_ten_scenes_of_every_set(measured):
    assert measured.keys() == STORED["figures"].keys()
    apart = {name: (value, measured[name]) for name, value in STORED["figures"].items()
             if measured[name] != pytest.approx(value, abs=2 if "cgF1" in name else 0.02)}  # fmt: skip
    assert not apart
