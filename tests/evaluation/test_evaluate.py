"""Evaluation: the figures are what their definitions say, on predictors whose answers are known."""

import csv
import json
import math
import shutil

import numpy as np
import pytest
from PIL import Image

from digseg_engine.commands.main import dispatch
from digseg_engine.data.query import Query
from digseg_engine.errors import UsageError
from digseg_engine.evaluation.answers import Answer
from digseg_engine.evaluation.metrics import Score
from digseg_engine.evaluation.outlines import outline_band
from digseg_engine.evaluation.panel import CELL, GAP, GROUP, panel
from digseg_engine.evaluation.predictors import decide, reference_predictor, student_predictor
from digseg_engine.evaluation.protocols import EVERY, Sample, TestScenes, Trial, open_samples, scene_queries
from digseg_engine.evaluation.report import write_report
from digseg_engine.evaluation.score import Request, evaluate, figures, score_model
from digseg_engine.evaluation.views import Views
from digseg_engine.worlds.scenes import SEEN_PAIRS, UNSEEN_PAIRS, phrase
from tests.training import dataset_trees


def oracle(samples, change=lambda masks: masks):
    """A predictor that knows the truth of every picture, or what `change` makes of it."""
    known = {samples[i].image.tobytes(): samples[i].truth for i in range(len(samples))}
    return lambda image, prompts: np.where(change(known[image.tobytes()]), 1.0, -1.0).astype(np.float32)


class Two:
    """Two pictures of one row with exclusive labels, the last pixel of the second ignored."""

    name, rule, notes = "two", "strongest", ()
    queries = (Query("a", "a"), Query("b", "b"), Query("c", "c"))
    ids = np.array([[[0, 0, 0, 1]], [[1, 1, 0, 0]]])

    def __len__(self):
        return 2

    def __getitem__(self, i):
        truth = self.ids[i] == np.arange(3)[:, None, None]
        valid = np.array([[True, True, True, i == 0]])
        return Sample(f"{i}", np.full((1, 4, 3), i, np.uint8), truth, valid)


def test_the_truth_scores_one_and_its_opposite_zero():
    samples = TestScenes("objects", 12, 48)
    both = evaluate(oracle(samples), samples)
    for right in (both.together, both.alone):
        assert right.miou() == right.miou(SEEN_PAIRS) == right.miou(UNSEEN_PAIRS) == right.ciou() == right.dice() == 1
        assert right.false_area() == right.false_rate() == right.false_picture_rate() == 0
    assert both.together.boundary_iou() == 1 and math.isnan(both.alone.boundary_iou())
    crops = TestScenes("crops", 5, 48)
    wrong = evaluate(oracle(crops, np.logical_not), crops).alone
    assert wrong.miou() == wrong.ciou() == wrong.dice() == 0


def test_figures_of_counts_made_by_hand():
    score = Score(["a", "b", "c"])
    truth, got = np.zeros((2, 3, 4, 4), bool), np.zeros((2, 3, 4, 4), bool)
    truth[0, 0, :2], got[0, 0, :1] = True, True  # a: 4 of 8 found
    got[1, 0, 3] = True  # 4 false pixels where "a" is absent
    got[1, 1, 0, :2] = True  # "b" never occurs but 2 pixels are marked
    for p, t in zip(got, truth):
        score.add(p, t)
    assert score.iou() == {"a": 4 / 12}
    assert score.miou() == 4 / 12 and score.miou_counting_absent() == 2 / 12  # "c" is neither there nor predicted
    assert score.ciou() == 4 / 14
    assert math.isclose(score.dice(), 2 * 4 / (4 + 8))  # the one pair that is present
    assert score.absent_pairs == 5 and math.isclose(score.false_area(), (4 / 16 + 2 / 16) / 5)
    assert score.per_picture[0] == 0.5 and math.isnan(score.per_picture[1])


def test_ignored_pixels_count_nowhere_and_confusions_are_kept():
    def predict(image, prompts):  # first picture: right but for its last pixel; second: all "a"
        ids = np.array([[0, 0, 0, 2]]) if image[0, 0, 0] == 0 else np.zeros((1, 4), int)
        return (ids == np.arange(3)[:, None, None]).astype(np.float32)

    score = evaluate(predict, Two()).together
    assert score.confusion[:3, :3].tolist() == [[4, 0, 0], [2, 0, 1], [0, 0, 0]]
    assert score.confusion.sum() == 7  # 8 pixels, one ignored
    assert score.iou() == {"a": 4 / 6, "b": 0.0}
    assert score.miou() == (4 / 6) / 2 and math.isclose(score.miou_counting_absent(), (4 / 6) / 3)


def test_rules_that_make_masks_of_logits():
    logits = Answer.of(np.array([[[-1.0, 2.0]], [[-2.0, 3.0]]], np.float32))
    assert decide(logits, "strongest").tolist() == [[[True, False]], [[False, True]]]
    assert decide(logits, "strongest or none").tolist() == [[[False, False]], [[False, True]]]
    assert decide(logits, "each").tolist() == [[[False, True]], [[False, True]]]


@pytest.mark.parametrize(
    ("layout", "rule", "k"), [("ade20k", "strongest", 150), ("voc2012", "strongest or none", 20), ("kvasir", "each", 1)]
)
def test_folders_of_labelled_pictures_are_scored_at_their_own_size(tmp_path, layout, rule, k):
    getattr(dataset_trees, layout)(tmp_path)
    (samples,) = open_samples(str(tmp_path), 2, 64)
    assert (1 <= len(samples) <= 2, samples.rule, len(samples.queries)) == (True, rule, k)
    assert samples[0].truth.shape == (k, *dataset_trees.SIZE) and samples[0].image.shape == (*dataset_trees.SIZE, 3)
    scores = evaluate(oracle(samples), samples)
    assert scores.together.miou() == scores.alone.miou() == 1 and scores.alone.false_area() == 0
    assert scores.together.confusion.sum() == (
        0 if rule == "each" else sum(samples[i].valid.sum() for i in range(len(samples)))
    )


def test_outline_band_is_two_percent_of_the_diagonal_wide():
    masks = np.zeros((1, 150, 200), bool)
    masks[0, 40:110, 50:150] = True  # diagonal 250, band 5
    band = outline_band(masks[0])
    inner = masks[0].copy()
    inner[45:105, 55:145] = False
    assert (band == inner).all()
    everything = outline_band(np.ones((150, 200), bool))
    assert everything[:5].all() and everything[:, -5:].all() and not everything[5:-5, 5:-5].any()


def test_boundary_iou_punishes_a_shift_more_than_iou_does():
    samples = TestScenes("aerial", 6, 64)
    score = evaluate(oracle(samples, lambda masks: np.roll(masks, 2, axis=2)), samples).together
    assert score.boundary_iou() < score.miou() < 1


def test_a_false_alarm_of_one_prompt_costs_it_alone():
    samples = TestScenes("microscopy", 10, 48)
    both = evaluate(oracle(samples, lambda masks: masks | ~masks.any((1, 2), keepdims=True)), samples)
    assert both.alone.miou() < 1 and both.alone.false_area() == both.alone.false_rate() == 1


def test_rewordings_mean_the_same_regions_and_are_no_training_phrase():
    plain, other = scene_queries("objects"), scene_queries("objects", reworded=True)
    assert [q.name for q in plain] == [q.name for q in other] and other[0].text != plain[0].text
    rng = np.random.default_rng(0)
    trained = {phrase(rng, name).text for name in (q.name for q in plain) for _ in range(60)}
    assert not trained & {q.text for q in other}


def test_student_and_reference_answer_every_prompt_at_the_pictures_size(nano):
    image = np.zeros((50, 70, 3), np.uint8)
    for predict in (student_predictor(nano, 64), reference_predictor(nano, 2, 64), reference_predictor(nano, 1, 64)):
        logits = predict(image, ["soil", "weed", "crop row"]).whole()
        assert logits.shape == (3, 50, 70) and np.isfinite(logits).all()


def test_report_holds_figures_lines_and_a_picture(tmp_path):
    samples = TestScenes("aerial", 4, 48)
    predict = oracle(samples)
    scores = {"aerial": evaluate(predict, samples)}
    paths = write_report(
        tmp_path / "sub" / "r",
        [Trial("aerial", samples, predict)],
        scores,
        {"figures": figures("aerial", scores["aerial"])},
    )
    body = json.loads(paths[0].read_text())
    assert body["figures"]["aerial"] == 1 and body["iou"]["aerial"]["field"] == 1
    with paths[1].open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [q.name for q in samples.queries] and rows[0]["iou"] in ("1.0", "")
    with Image.open(paths[2]) as grid:
        assert grid.mode == "P" and grid.width == 3 * (GROUP + 2 * GAP) and grid.height < 2 * CELL


def test_the_panel_is_a_grid_with_one_row_per_set_and_the_views_in_place():
    sets = [TestScenes(domain, 5, 128) for domain in ("objects", "textures")]
    predict = oracle(sets[0]), oracle(sets[1])
    scores = {samples.name: evaluate(own, samples) for own, samples in zip(predict, sets)}
    trials = [Trial(samples.name, samples, own) for own, samples in zip(predict, sets)]
    both, one = panel(trials, scores).convert("RGB"), panel(trials[:1], scores)
    assert both.size == (one.width, 2 * one.height - GAP)
    shown = np.asarray(both, int)[GAP + 30 : GAP + 30 + CELL, GAP : GAP + GROUP]
    picture, truth, answer = (shown[:, n * (CELL + 2) : n * (CELL + 2) + CELL] for n in range(3))
    best = sets[0][scores["objects"].together.best_median_worst()["best"]]
    assert np.abs(picture - best.image).mean() < 12  # 256 colours for everything
    assert (truth == answer).all() and np.abs(truth - picture).mean() > 20


def test_a_checkpoint_is_scored_from_the_command(nano_folder, tmp_path, capsys):
    score_model(Request(nano_folder, "scenes:crops,objects", 2), tmp_path / "r.json")
    body = json.loads((tmp_path / "r.json").read_text())
    assert body["pictures"] == {"crops": 2, "objects": 2, "objects, reworded": 2}
    assert "objects, reworded, unseen" in capsys.readouterr().out


def test_the_reference_is_scored_at_several_steps_in_one_table_and_report(nano_folder, tmp_path, capsys):
    report = tmp_path / "steps.json"
    words = ["--model", str(nano_folder), "--data", "scenes:crops,aerial", "--count", "2", "--reference-steps", "1,4"]
    assert dispatch(["eval", *words, "--report", str(report)]) == 0
    said, body = capsys.readouterr().out, json.loads(report.read_text())
    names = ["crops, 1 step", "crops, 4 steps", "aerial, 1 step", "aerial, 4 steps"]
    assert [line.split("│")[1].strip() for line in said.splitlines() if line.startswith("│")] == names
    assert body["reference_steps"] == [1, 4] and list(body["iou"]) == list(body["seconds"]) == names
    with report.with_suffix(".csv").open() as file:
        assert {row["set"] for row in csv.DictReader(file)} == set(names)
    alone = score_model(Request(nano_folder, "scenes:aerial", 2, reference_steps=(4,)))["aerial"]
    assert body["iou"]["aerial, 4 steps"] == alone.together.iou() != body["iou"]["aerial, 1 step"]
    assert body["figures"]["aerial, 4 steps"] == pytest.approx(alone.together.miou())


@pytest.mark.parametrize("steps", ["0", "1,,2", "1,-2", "few"])
def test_steps_that_are_none_are_refused(steps):
    with pytest.raises(UsageError, match=r"--reference-steps must be whole numbers of at least 1 such as 1,2,4,8"):
        dispatch(["eval", "--reference-steps", steps])


@pytest.mark.parametrize(
    ("views", "hinted"),
    [(Views(), True), (Views(slide=True), False), (Views(short_side=40), False), (Views(scales=(1.0, 3.0)), False)],
)
def test_pictures_much_larger_than_they_are_worked_at_bring_a_hint(tmp_path, nano_folder, capsys, views, hinted):
    large = np.zeros((120, 100), np.uint8)
    for folder, picture in (("images", Image.new("RGB", (100, 120))), ("masks", Image.fromarray(large + 1))):
        (tmp_path / "data" / folder).mkdir(parents=True)
        picture.save(tmp_path / "data" / folder / "a.png")
    (tmp_path / "data" / "classes.json").write_text(json.dumps({"classes": ["soil", "weed"]}))
    score_model(Request(nano_folder, str(tmp_path / "data"), size=32, views=views), tmp_path / "r.json")
    said = "100 % of the pictures are worked at a third of their size or less (32 px)"
    assert (said in capsys.readouterr().err) == hinted
    assert any(said in each for each in json.loads((tmp_path / "r.json").read_text())["notes"]) == hinted


def test_scenes_are_not_scored_in_silence_with_a_model_of_other_data(nano_folder, tmp_path, capsys):
    shutil.copytree(nano_folder, tmp_path / "mine")
    record = tmp_path / "mine" / "training" / "train.json"
    record.parent.mkdir(exist_ok=True)
    for data, words in (
        ("fields=2", "was trained on fields, and"),
        (["a", "b"], "trained on a, b, and"),
        (["scenes", "a", "b"], ""),
        ("scenes", ""),
    ):
        record.write_text(json.dumps({"data": data}))
        assert dispatch(["eval", "--model", str(tmp_path / "mine"), "--data", "scenes:crops", "--count", "1"]) == 0
        said = capsys.readouterr().err
        assert words in said if words else "was trained on" not in said


def test_unusable_requests_are_refused(tmp_path, nano_folder):
    with pytest.raises(UsageError, match="of scenes there is no end"):
        open_samples("scenes", EVERY, 48)
    with pytest.raises(UsageError, match="at least 1"):
        open_samples("scenes", -1, 48)
    with pytest.raises(UsageError, match="a folder of labelled pictures or shards, got 'nowhere'"):
        open_samples("nowhere", 1, 48)
    with pytest.raises(UsageError, match="--data is scenes here"):
        open_samples("scenes", 1, 48, split="val")
