"""What is in a picture: by the readout where a model has one, else by masks; and presence and masks in one figure."""

import json

import numpy as np
import pytest
from conftest import run_command

from digseg_engine.contract import ABSENT
from digseg_engine.evaluation.metrics import MATCHES, Score
from digseg_engine.evaluation.predictors import Said, bundle_predictor, predictor, student_predictor
from digseg_engine.evaluation.score import evaluate, figures
from digseg_engine.evaluation.views import Views
from digseg_engine.images import Frame
from digseg_engine.model.pretrained import load_checkpoint


def strips(*ends):
    """Masks [K, 10, 10]: prompt k has the rows from start to stop of `ends`, None for none."""
    masks = np.zeros((len(ends), 10, 10), bool)
    for mask, end in zip(masks, ends):
        if end is not None:
            mask[slice(*end)] = True
    return masks


@pytest.mark.parametrize("exclusive", [False, True])
def test_figures_by_hand(exclusive):
    score = Score(list("abcd"), exclusive=exclusive)
    truth = strips((0, 4), (4, 8), None, None)
    # a is right to 3 of 4 rows (IoU 0.75), b is missed, c is a false alarm, d is rightly empty
    score.add(strips((0, 3), None, (8, 10), None), truth)
    score.add(strips((0, 4), (4, 8), None, None), truth)  # all right
    assert score.presence.tolist() == [[3, 1], [1, 3]] and not score.readout
    assert score.presence_precision() == 3 / 4 and score.presence_recall() == 3 / 4
    assert score.presence_mcc() == pytest.approx((3 * 3 - 1) / 16)
    f1 = [2 * (3 if least <= 0.75 else 2) / (3 + 4) for least in MATCHES]  # 3 masks for the 4 pairs that are there
    assert score.pm_f1() == pytest.approx(np.mean(f1))
    assert score.cg_f1() == pytest.approx(100 * np.mean(f1) * score.presence_mcc())
    assert MATCHES.tolist() == [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]


def test_the_readout_is_what_counts_where_there_is_one():
    score = Score(list("abcd"))
    truth = strips((0, 4), (4, 8), None, None)
    score.add(truth, truth, said=np.array([True, False, True, False]))
    assert score.readout and score.presence.tolist() == [[1, 1], [1, 1]]
    assert score.presence_mcc() == 0 and score.pm_f1() == 1 and score.cg_f1() == 0


def test_what_knows_no_answer_has_no_figure():
    score = Score(["a"])
    score.add(strips(None), strips(None))
    assert np.isnan([score.pm_f1(), score.cg_f1(), score.presence_precision(), score.presence_recall()]).all()
    score.add(strips(None), strips((0, 2)))
    assert score.pm_f1() == 0 and score.presence_recall() == 0 and np.isnan(score.presence_precision())


def test_what_is_in_one_view_is_in_the_picture():
    import torch

    seen = iter([[True, False, False], [False, True, False]])

    def ask(image, prompts, longer):
        frame = Frame((longer, longer), (longer, longer), image.shape[:2])
        return Said(torch.zeros(3, 4, 4), frame, np.array(next(seen)))

    answer = predictor(ask, 64, 16, Views(scales=(1.0, 2.0)))(np.zeros((64, 64, 3), np.uint8), list("abc"))
    assert answer.present.tolist() == [True, True, False]


@pytest.fixture(scope="module")
def threshold(with_presence):
    return load_checkpoint(with_presence.checkpoint).config.presence_threshold


def test_checkpoint_and_bundle_answer_as_the_engine_does(with_presence, threshold):
    from digseg_engine import Engine

    engine = Engine.load(with_presence.bundle, "onnxruntime")
    checkpoint = load_checkpoint(with_presence.checkpoint)
    prompts = list(with_presence.prompts)
    predicts = [bundle_predictor(with_presence.bundle, 32), student_predictor(checkpoint, 32)]
    for picture in with_presence.pictures:
        want = engine.segment(picture, prompts)
        for predict in predicts:
            answer = predict(picture, prompts)
            assert np.array_equal(answer.present, want.there) and 0 < want.there.sum() < len(prompts)
            planes = answer.views[0].planes.numpy()
            assert (planes[~want.there] == ABSENT).all() and not (planes[want.there] == ABSENT).any()
            assert not answer.masks()[~want.there].any()
    bare = student_predictor(checkpoint, 32, readout=False)(with_presence.pictures[0], prompts)
    assert bare.present is None and not (bare.views[0].planes == ABSENT).any()


def test_without_a_threshold_it_speaks_from_one_half_and_leaves_nothing_out(with_presence):
    from dataclasses import replace

    checkpoint = load_checkpoint(with_presence.checkpoint)
    checkpoint.config = replace(checkpoint.config, presence_threshold=None)
    answer = student_predictor(checkpoint, 32)(with_presence.pictures[0], list(with_presence.prompts))
    assert answer.present.all() and not (answer.views[0].planes == ABSENT).any()  # its logits are all above 0


def test_every_test_set_has_them(with_presence):
    from digseg_engine.evaluation.protocols import TestScenes

    samples = TestScenes("aerial", 2, 32)
    scores = evaluate(student_predictor(load_checkpoint(with_presence.checkpoint), 32), samples)
    found = figures(samples.name, scores)
    assert scores.alone.readout and scores.together.readout
    for name in ("presence MCC", "presence precision", "presence recall", "pmF1", "cgF1"):
        assert f"aerial, {name}" in found and f"aerial, {name}, each prompt alone" in found
    assert found["aerial, presence recall"] == found["aerial, presence recall, each prompt alone"]  # one readout


def test_the_command_says_so(with_presence, nano_models, tmp_path):
    for model, by in ((with_presence.bundle, "the readout"), (nano_models.checkpoint, "masks")):
        done = run_command("digseg", "eval", "--model", str(model), "--data", "scenes:microscopy", "--count", "2", "--size", "32",
                           "--report", "r.json", cwd=tmp_path)  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert f"microscopy: presence by {by}: MCC" in done.stdout.replace("\n", " ").replace("  ", " ")
        assert "microscopy, cgF1" in json.loads((tmp_path / "r.json").read_text())["figures"]
