"""Evaluation: the score is what its definition says, on predictors whose answers are known."""

import json
import math

import numpy as np
import pytest

from digseg_engine.errors import UsageError
from digseg_engine.training.evaluate import Score, evaluate_domain, student_predictor, summary, write_report
from digseg_engine.training.scenes import SEEN_PAIRS, UNSEEN_PAIRS


def truth(scenes, prompts):
    return np.stack([[one.mask(prompt) for prompt in prompts] for one in scenes])


def test_the_truth_scores_one_and_its_opposite_zero():
    right = evaluate_domain(truth, "objects", 12, 48)
    assert right.mean() == right.mean(SEEN_PAIRS) == right.mean(UNSEEN_PAIRS) == 1 and right.false_area == 0
    wrong = evaluate_domain(lambda s, p: ~truth(s, p), "crops", 5, 48)
    assert wrong.mean() == 0


def test_iou_is_counted_over_the_whole_data_set():
    score = Score(["a", "b"])
    wanted, got = np.zeros((2, 2, 4, 4), bool), np.zeros((2, 2, 4, 4), bool)
    wanted[0, 0, :2], got[0, 0, :1] = True, True  # 4 of 8 found
    got[1, 0, 3] = True  # 4 false pixels where "a" is absent
    score.add(got, wanted)
    assert score.iou() == {"a": 4 / 12}  # "b" never occurs, so it has no IoU
    assert score.absent_pairs == 3 and math.isclose(score.false_area, (4 / 16) / 3)


def test_a_false_alarm_lowers_the_score():
    def shouting(scenes, prompts):
        return truth(scenes, prompts) | ~truth(scenes, prompts).any((2, 3), keepdims=True)

    assert evaluate_domain(shouting, "microscopy", 10, 48).mean() < 1


def test_student_predictor_answers_every_prompt(nano):
    score = evaluate_domain(student_predictor(nano), "textures", 3, 64)
    assert 0 <= score.mean() <= 1 and len(score.prompts) == 3


def test_report_holds_figures_and_every_prompt(tmp_path):
    scores = {"aerial": evaluate_domain(truth, "aerial", 4, 48)}
    write_report(tmp_path / "sub" / "r.json", scores, {"model": "truth"})
    body = json.loads((tmp_path / "sub" / "r.json").read_text())
    assert body["model"] == "truth" and body["figures"]["aerial"] == 1 and body["iou"]["aerial"]["field"] == 1
    assert summary("objects", Score(["red circle"])).keys() >= {"objects, seen pairs", "objects, unseen pairs"}


def test_no_scenes_is_refused():
    with pytest.raises(UsageError, match="at least 1"):
        evaluate_domain(truth, "aerial", 0, 48)
