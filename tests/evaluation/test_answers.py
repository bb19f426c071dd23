"""Answers in strips and views: what is counted is what full-size logits would say, wherever the pieces lie."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from digseg_engine.errors import UsageError
from digseg_engine.evaluation import answers
from digseg_engine.evaluation.alarms import Alarms, label_alarms
from digseg_engine.evaluation.answers import Answer, View
from digseg_engine.evaluation.calibration import Calibration
from digseg_engine.evaluation.counting import count_labels
from digseg_engine.evaluation.metrics import FALSE_PIXELS, Score
from digseg_engine.evaluation.outlines import band_counts, label_band_counts
from digseg_engine.evaluation.predictors import Said, choose_labels, decide, predictor
from digseg_engine.evaluation.views import Views, windows
from digseg_engine.images import Frame, fit, unfit
from tests.evaluation.pieces import largest_piece

SHAPES = [((51, 70), 64), ((97, 40), 64), ((40, 30), 96), ((130, 33), 48)]


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def answer_of(shape, size, count=5, seed=0):
    """Logits at a quarter of the working size, as the student gives them, and the same ones enlarged by Pillow."""
    canvas = fit(np.zeros((*shape, 3), np.uint8), size, 16)
    planes = noise(count, canvas.pixels.shape[2] // 4, canvas.pixels.shape[3] // 4, seed=seed)
    return Answer(shape, (View.of_frame(planes, canvas.frame),)), unfit(planes.numpy(), canvas)


@pytest.mark.parametrize(("shape", "size"), SHAPES)
@pytest.mark.parametrize("strip", [1, 1500, 1 << 22])
def test_rows_are_those_of_the_runtime(shape, size, strip, monkeypatch):
    monkeypatch.setattr(answers, "STRIP", strip)
    answer, full = answer_of(shape, size)
    together = torch.cat([logits for _, logits in answer.strips()], 1).numpy()
    assert together.shape == full.shape and np.abs(together - full).max() < 2e-6
    monkeypatch.setattr(answers, "KEPT", 0)
    again, _ = answer_of(shape, size)
    assert np.abs(again.whole() - full).max() < 2e-6


def test_an_answer_at_full_size_is_itself():
    logits = noise(3, 20, 31).numpy()
    assert np.array_equal(Answer.of(logits).whole(), logits) and Answer.of(Answer.of(logits)).count == 3


@pytest.mark.parametrize("rule", ["strongest", "strongest or none"])
@pytest.mark.parametrize("strip", [1, 1 << 22])
def test_counting_in_strips_is_counting_masks(rule, strip, monkeypatch):
    monkeypatch.setattr(answers, "STRIP", strip)
    rng, count = np.random.default_rng(3), 7
    for n in range(4):
        answer, full = answer_of((60, 83), 64, count, seed=n)
        truth = rng.integers(-2, count - 2, (6, 8)).repeat(10, 0).repeat(11, 1)[:, :83].astype(np.int16)
        valid = truth != -1 if n else None
        right = truth == np.arange(count)[:, None, None]
        calibration = Calibration()
        labels, counted = count_labels(answer, truth, valid, rule, calibration)
        answered = (labels >= 0) & (True if valid is None else valid)
        assert (calibration.pixels.sum(), calibration.right.sum()) == (
            answered.sum(),
            (answered & (labels == truth)).sum(),
        )
        assert np.array_equal(labels == np.arange(count)[:, None, None], decide(Answer.of(full), rule))
        by_masks, by_counts = Score(list("abcdefg"), outlines=False), Score(list("abcdefg"), outlines=False)
        by_masks.add(full > 0, right, valid)
        by_counts.add_counts(counted)
        assert by_masks.rows() == by_counts.rows() and by_masks.per_picture == by_counts.per_picture
        assert by_masks.false_pairs == by_counts.false_pairs > 0 and by_masks.false_area() == by_counts.false_area()
        assert np.array_equal(by_masks.presence, by_counts.presence)


def speckled(rng, shape, share):
    return rng.random(shape) < share


@pytest.mark.parametrize("share", [0.2, 0.45, 0.6])
def test_alarms_are_the_largest_pieces(share):
    rng = np.random.default_rng(int(100 * share))
    masks = speckled(rng, (12, 40, 57), share)
    masks[3], masks[4] = False, True
    masks[5] = False
    masks[5, 8, 10 : 10 + FALSE_PIXELS], masks[5, 20, 3] = True, True  # one too few, and one elsewhere
    masks[9:11] = False
    masks[9, -1, 10:25], masks[10, 0, 10:25] = True, True  # the end of one mask lies before the start of the next
    masks[6] = False
    masks[6, 18:23, 30:34], masks[6, 23, 30] = True, True  # 21 pixels over two strips
    asked = np.arange(12) != 8
    want = np.array([largest_piece(mask) > FALSE_PIXELS for mask in masks]) & asked
    assert want[4] and want[6] and not want[[5, 9, 10]].any() and 1 < want.sum() < 12
    for step in (7, 20, 40):
        alarms = Alarms(asked, (40, 57), FALSE_PIXELS)
        counts = sum(alarms.look(first, masks[:, first : first + step]) for first in range(0, 40, step))
        assert np.array_equal(alarms.result(), want) and np.array_equal(counts, masks.sum((1, 2)))
    labels = rng.integers(-1, 3, (40, 57))
    labels[10:13, 10:20], labels[30, 5:26] = 3, 4
    want = np.array([largest_piece(labels == k) > FALSE_PIXELS for k in range(6)])
    assert np.array_equal(label_alarms(labels, np.ones(6, bool), FALSE_PIXELS), want) and want.sum() >= 2
    assert not label_alarms(labels, np.zeros(6, bool), FALSE_PIXELS).any()


def test_what_lies_under_ignored_pixels_is_no_alarm():
    truth, answer = np.zeros((30, 40), int), np.zeros((30, 40), int)
    answer[5:15, 5:15] = 1
    valid = np.ones((30, 40), bool)
    for ignored, alarms in ((slice(0, 0), 1), (slice(0, 13), 0)):
        valid[ignored] = False
        score = Score(["ground", "thing"], exclusive=True)
        score.add_labels(answer, truth, valid)
        assert (score.false_pairs, score.presence.tolist()) == (alarms, [[0, 1], [0, 1]])


@pytest.mark.parametrize("shape", [(48, 60), (90, 11), (3, 200)])
def test_outlines_of_all_labels_at_once_are_those_of_each(shape):
    rng = np.random.default_rng(0)
    for n in range(3):
        coarse = rng.integers(-2, 4, (2, -(-shape[0] // 12), -(-shape[1] // 12)))
        predicted, truth = coarse.repeat(12, 1).repeat(12, 2)[:, : shape[0], : shape[1]]
        valid = rng.random(shape) > 0.02 if n else None
        both, either = label_band_counts(predicted, truth, 5, valid)
        for k in range(5):
            assert (both[k], either[k]) == band_counts(predicted == k, truth == k, valid)


def brightness(image, prompts, longer):
    """A model that answers each pixel's own brightness, at the size it works at."""
    canvas = fit(image, longer, 8)
    return Said(torch.from_numpy(canvas.pixels[0, :1]), canvas.frame)


def test_windows_cover_a_picture_and_overlap():
    for shape, side in (((100, 260), 64), ((64, 64), 64), ((30, 200), 64), ((65, 64), 64), ((10, 12), 64)):
        seen, boxes = np.zeros(shape, int), windows(shape, side, 1 / 3)
        for left, top, right, bottom in boxes:
            assert (right - left, bottom - top) == (min(side, shape[1]), min(side, shape[0]))
            seen[top:bottom, left:right] += 1
        assert seen.min() == 1 or min(shape) <= side
        assert seen.min() >= 1 and len(set(boxes)) == len(boxes)
    lefts = [box[0] for box in windows((64, 260), 64, 1 / 3)]
    assert all(after - before <= 43 for before, after in pairwise(lefts)) and lefts[-1] == 260 - 64


@pytest.mark.parametrize("views", [Views(), Views(flip=True), Views(slide=True), Views(slide=True, flip=True)])
def test_views_lie_where_their_pixels_are(views):
    """Worked at the picture's own resolution, every view answers the picture itself, mirrored ones turned back."""
    image = np.random.default_rng(0).integers(0, 256, (72, 104, 3), np.uint8)
    answer = predictor(brightness, 104 if not views.slide else 48, 8, views)(image, ["x"])
    assert len(answer.views) == (2 if views.flip else 1) * (len(windows((72, 104), 48, 1 / 3)) if views.slide else 1)
    assert np.abs(answer.whole()[0] - (image[..., 0] / 127.5 - 1)).max() < 1e-5


def test_scales_and_the_shorter_side_choose_the_working_size():
    asked = []

    def ask(image, prompts, longer):
        asked.append((image.shape[:2], longer))
        return Said(torch.full((1, 4, 4), float(longer)), Frame((longer, longer), (longer, longer), image.shape[:2]))

    image = np.zeros((100, 200, 3), np.uint8)
    mean = predictor(ask, 64, 16, Views(scales=(0.5, 1.0, 2.0)))(image, ["x"]).whole()
    assert [longer for _, longer in asked] == [32, 64, 128] and np.allclose(mean, (32 + 64 + 128) / 3)
    asked.clear()
    predictor(ask, 64, 16, Views(short_side=64))(image, ["x"])
    assert asked == [((100, 200), 128)]
    asked.clear()
    predictor(ask, 64, 16, Views(slide=True, short_side=32))(image, ["x"])
    assert {shape for shape, _ in asked} == {(100, 200)} and asked[0][1] == 64  # a window holds all of it at a third
    asked.clear()
    predictor(ask, 64, 16, Views(slide=True, short_side=64))(image, ["x"])
    assert len(asked) > 1 and {(shape, longer) for shape, longer in asked} == {((100, 100), 64)}


@pytest.mark.parametrize("wrong", [{"scales": ()}, {"scales": (0.0,)}, {"overlap": 1.0}, {"short_side": 4}])
def test_views_that_cannot_be_are_refused(wrong):
    with pytest.raises(UsageError):
        Views(**wrong)


def test_calibration_of_answers_made_by_hand():
    calibration = Calibration()
    assert np.isnan(calibration.error())
    broken = Calibration()
    broken.add(torch.full((5,), float("nan")), torch.zeros(5, dtype=torch.bool))
    assert broken.pixels.sum() == 5 and broken.error() == 0
    sure, unsure = torch.full((100,), np.log(0.975 / 0.025)), torch.full((50,), np.log(0.525 / 0.475))
    calibration.add(sure, torch.arange(100) < 90)  # said 0.975, right 0.9
    calibration.add(unsure, torch.arange(50) < 40)  # said 0.525, right 0.8
    assert calibration.error() == pytest.approx((100 * 0.075 + 50 * 0.275) / 150, abs=1e-5)
    first, second = calibration.rows()
    assert (first["probability"], first["right"], second["right"]) == (pytest.approx(0.525), 0.8, 0.9)


def test_the_strongest_of_equal_logits_is_the_first():
    logits = torch.tensor([[[1.0, 3.0]], [[1.0, 5.0]], [[0.0, 5.0]]])
    best, number = choose_labels(logits, "strongest")
    assert number.tolist() == [[0, 1]] and best.tolist() == [[1.0, 5.0]]
    assert torch.equal(best, logits.max(0).values) and torch.equal(number.long(), logits.max(0).indices)
