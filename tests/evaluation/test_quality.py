"""The figures of `quality.json`: which pictures and prompts they are made on, and that every part is asked as it runs."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from digseg_engine import Engine
from digseg_engine.data.query import Query
from digseg_engine.evaluation import quality
from digseg_engine.evaluation.predictors import reference_predictor, student_predictor
from digseg_engine.evaluation.protocols import Sample, TestScenes
from digseg_engine.evaluation.quality import Case, cases_of, means, measure
from digseg_engine.model.autoencoder import decode_mask, encode_mask
from digseg_engine.model.pretrained import as_stored
from digseg_engine.model.quality import read_quality

ROOT = Path(__file__).resolve().parents[2]
PARTS = {"student", "codec", *(f"reference@{n}" for n in (1, 2, 4, 8)),
         *(f"{name}@{n}" for name in ("refine_student", "refine_truth") for n in (1, 2, 4))}  # fmt: skip


class Stripes:
    """Three pictures of 12 x 10 pixels with four classes: all in the first, none in the second, one in the third, where
    another one is only where pixels do not count. `exclusive`: label maps, else masks."""

    rule, notes = "strongest", ()
    queries = tuple(Query(f"a {name}", name) for name in "abcd")

    def __init__(self, name="stripes", exclusive=True):
        self.name, self.exclusive = name, exclusive

    def __len__(self):
        return 3

    def __getitem__(self, i):
        labels = np.full((12, 10), -1, np.int16)
        valid = np.ones((12, 10), bool)
        if i == 0:
            labels[:, :8] = np.arange(8, dtype=np.int16)[None] // 2
        if i == 2:
            labels[:4], labels[4:6] = 3, 1
            valid[4:6] = False
        image = np.full((12, 10, 3), 40 * i, np.uint8)
        if self.exclusive:
            return Sample(f"s{i}", image, None, valid, labels, 4)
        return Sample(f"s{i}", image, labels == np.arange(4, dtype=np.int16)[:, None, None], valid)


@pytest.mark.parametrize("exclusive", [True, False])
def test_a_case_asks_for_some_of_what_is_there(exclusive):
    first, third = cases_of([Stripes(exclusive=exclusive)], 9)
    assert len(first.prompts) == 2 and first.truth.shape == (2, 12, 10) and (first.truth.sum((1, 2)) == 24).all()
    assert third.prompts == ["a d"] and third.truth[0].sum() == 40 and not third.valid[4:6].any()
    again, _ = cases_of([Stripes(exclusive=exclusive)], 9)
    assert again.prompts == first.prompts
    (whole, _) = cases_of([Stripes(exclusive=exclusive)], 9, prompts=9)
    assert whole.prompts == ["a a", "a b", "a c", "a d"]


def test_sets_take_turns_and_the_number_is_kept():
    both = [Stripes("one"), TestScenes("crops", 5, 64)]
    sizes = [case.image.shape[0] for case in cases_of(both, 5)]
    assert sizes == [12, 64, 64, 12, 64]  # the second of the stripes holds nothing
    assert len(list(cases_of(both, 1))) == 1


@pytest.fixture
def loud(nano):
    """An untrained model that marks some of a picture, differently for every prompt."""
    for inject in (*nano.student.injections, *nano.reference.pathway.injections):
        inject.gate.data.fill_(20.0)
    nano.student.head.logits.weight.data.mul_(8)
    nano.student.head.logits.bias.data.zero_()
    return as_stored(nano)


@pytest.fixture
def wide():
    """A picture that is reduced and padded: 150 x 100 pixels for a model of 64."""
    rng = np.random.default_rng(3)
    truth = np.zeros((2, 100, 150), bool)
    truth[0, 10:70, 20:110], truth[1, 40:, 90:] = True, True
    valid = np.ones((100, 150), bool)
    valid[:, :30] = False
    return Case(rng.integers(0, 255, (100, 150, 3), np.uint8), ["water", "a tree"], truth, valid, seed=5)


def iou(got, case):
    got, want = got & case.valid, case.truth & case.valid
    return [float((g & w).sum() / (g | w).sum()) for g, w in zip(got, want)]


def test_every_part_is_asked_as_it_runs(loud, wide, raw_tokenizer, tmp_path):
    from digseg_engine.model.pretrained import save_checkpoint

    rows = measure(loud, [wide])
    assert set(rows) == PARTS and all(len(row) == 2 for row in rows.values())
    assert rows["student"] == iou(student_predictor(loud)(wide.image, wide.prompts).masks(), wide)
    for n in (1, 2, 4, 8):
        assert rows[f"reference@{n}"] == iou(reference_predictor(loud, n)(wide.image, wide.prompts).masks(), wide), n
    save_checkpoint(loud, raw_tokenizer.to_str(), tmp_path / "loud")
    engine = Engine.load(tmp_path / "loud", "torch", device="cpu")
    for n in (1, 2, 4):
        found = engine.segment(wide.image, wide.prompts, refine=2, steps=n, seed=wide.seed, force=True)
        assert rows[f"refine_student@{n}"] == pytest.approx(iou(found.masks, wide), abs=1e-3), n
    assert len({tuple(row) for row in rows.values()}) > 6  # the parts differ, so that none stands for another


def test_true_masks_are_what_the_codec_and_the_refiner_get(loud, wide, monkeypatch):
    class Echo(quality.Refiner):
        def refine(self, picture, ids, mask, logits, steps, seed):
            assert ids.shape == mask.shape and len(ids) == len(logits)
            return logits

    monkeypatch.setattr(quality, "Refiner", Echo)
    rows = measure(loud, [wide])
    assert all(rows[f"refine_student@{n}"] == rows["student"] for n in (1, 2, 4))
    assert min(rows["refine_truth@1"]) > 0.93  # what resizing to 64 pixels and back leaves of 100 x 150
    square = Case(np.zeros((64, 64, 3), np.uint8), ["water"], np.kron(np.eye(4) > 0, np.ones((16, 16)))[None] > 0)
    rows = measure(loud, [square])
    assert rows["refine_truth@4"] == [1.0]
    decoded = decode_mask(loud.vae, encode_mask(loud.vae, torch.from_numpy(square.truth).float()))[0].numpy() > 0
    assert rows["codec"] == [float((decoded & square.truth[0]).sum() / (decoded | square.truth[0]).sum())]


def test_means_are_over_masks():
    rows = {name: [0.2, 0.4, 0.9] for name in PARTS} | {"student": [0.0, 0.0, 0.3], "reference@8": [1.0, 1.0, 0.1]}
    figures = means(rows, {"on": "three masks"})
    assert (figures.student, figures.codec, figures.reference) == (0.1, 0.5, {1: 0.5, 2: 0.5, 4: 0.5, 8: 0.7})
    assert figures.refine_student == figures.refine_truth == {1: 0.5, 2: 0.5, 4: 0.5}
    assert figures.measured == {"on": "three masks", "masks": 3} and figures.helpful == [1, 2, 4]


def test_measuring_in_place_changes_no_network(loud, wide):
    before = {name: value.clone() for name, value in loud.reference.state_dict().items()}
    parts = [loud.vae, loud.text_encoder, loud.reference]
    made = quality.Refiner(loud, torch.device("cpu"), copied=False)
    assert [made.vae, made.text_encoder, made.reference] == parts and made.detail == "cpu"
    measure(loud, [wide])
    assert all(torch.equal(before[name], value) for name, value in loud.reference.state_dict().items())


def test_the_benchmark_measures_a_folder_and_writes_it_into_the_checkpoint(nano_folder, tmp_path, monkeypatch, capsys):
    from tests.training.dataset_trees import TREES

    TREES["voc2012"](tmp_path / "data")
    words = ["refine.py", "--checkpoint", nano_folder, "--data", tmp_path / "data", "--count", "1", "--write", "--output",
             tmp_path / "out.json"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    runpy.run_path(str(ROOT / "benchmarks" / "refine.py"), run_name="__main__")
    figures = read_quality(nano_folder)
    assert figures.measured["on"] == "held-out pictures of data" and figures.measured["masks"] == 2
    assert json.loads((tmp_path / "out.json").read_text())["means"]["student"] == figures.student
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["codec"] == figures.codec
