"""Counting: outlines by plain search, label maps against masks, false alarms by pieces; devices; splits; what is printed."""

import copy
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from digseg_engine.commands import eval as command
from digseg_engine.data.datasets import open_dataset
from digseg_engine.data.wordings import encode_text
from digseg_engine.errors import UsageError
from digseg_engine.evaluation.metrics import FALSE_PIXELS, Score, labels_of
from digseg_engine.evaluation.outlines import band_counts, outline_band
from digseg_engine.evaluation.predictors import (
    choose_labels,
    choose_predictors,
    on_device,
    reference_logits,
    student_logits,
)
from digseg_engine.evaluation.protocols import LabelledPictures, held_out_split
from digseg_engine.evaluation.score import Request
from digseg_engine.evaluation.tables import class_table
from digseg_engine.runtime.labels import Rules, label
from digseg_engine.working_size import WorkingSize
from tests.evaluation.pieces import largest_piece
from tests.training.dataset_trees import grey, label_map, picture


def blobs(rng, names, shape):
    """Exclusive masks [K, H, W] of a few large regions each."""
    coarse = rng.integers(0, names, (4, 5))
    ids = np.kron(coarse, np.ones((math.ceil(shape[0] / 4), math.ceil(shape[1] / 5)), int))[: shape[0], : shape[1]]
    return ids == np.arange(names)[:, None, None]


def band_by_search(mask, valid=None):
    """The definition, pixel by pixel: in the mask, with a known pixel outside it (or the rim) in the square around."""
    d = max(1, round(0.02 * math.hypot(*mask.shape)))
    solid = mask if valid is None else mask | ~valid
    band = np.zeros_like(mask)
    for y, x in zip(*np.nonzero(mask)):
        top, left = y - d, x - d
        square = solid[max(0, top) : y + d + 1, max(0, left) : x + d + 1]
        whole = top >= 0 and left >= 0 and square.shape == (2 * d + 1, 2 * d + 1) and square.all()
        band[y, x] = not whole and (valid is None or valid[y, x])
    return band


@pytest.mark.parametrize("shape", [(40, 61), (90, 11), (3, 200), (120, 170)])
def test_outline_bands_are_those_of_a_plain_search(shape):
    rng = np.random.default_rng(0)
    masks = [*blobs(rng, 3, shape), rng.random(shape) > 0.02, np.zeros(shape, bool), np.ones(shape, bool)]
    valid = rng.random(shape) > 0.01
    valid[:, 5:9] = False
    for mask in masks:
        assert np.array_equal(outline_band(mask), band_by_search(mask))
        assert np.array_equal(outline_band(mask & valid, valid), band_by_search(mask & valid, valid))


def test_the_border_of_an_unknown_area_is_no_outline():
    """Truth ends at the unknown area, a right answer goes on beneath it: neither an error nor a shared outline."""
    answer = np.zeros((60, 80), bool)
    answer[10:50, 10:70] = True
    valid = np.ones((60, 80), bool)
    valid[:, 40:50] = False
    truth = answer & valid
    inside, union = band_counts(answer, truth, valid)
    assert inside == union > 0
    assert union == np.count_nonzero(outline_band(answer) & valid)  # and nothing was added along the unknown area


def test_label_maps_and_masks_count_alike():
    rng = np.random.default_rng(1)
    by_masks, by_labels, plain = (
        Score(list("abcd"), exclusive=True),
        Score(list("abcd"), exclusive=True),
        Score(list("abcd")),
    )
    for n in range(4):
        truth, predicted = blobs(rng, 4, (48, 60)), blobs(rng, 4, (48, 60))
        truth[n], predicted[3 - n] = False, False
        valid = rng.random((48, 60)) > 0.1 if n else None
        by_masks.add(predicted, truth, valid)
        by_labels.add_labels(labels_of(predicted), labels_of(truth), valid)
        plain.add(predicted, truth, valid)
    assert by_masks.rows() == by_labels.rows() == plain.rows()
    assert by_masks.boundary_iou() == plain.boundary_iou() and by_masks.per_picture == plain.per_picture
    assert np.array_equal(by_masks.confusion, by_labels.confusion) and by_masks.confusion.sum() > 0
    for figure in ("false_area", "false_rate", "false_picture_rate", "dice", "ciou"):
        assert getattr(by_labels, figure)() == getattr(plain, figure)()


def test_a_false_alarm_is_one_piece_of_more_than_so_many_pixels():
    score = Score(["there", "not"])
    truth = np.zeros((2, 30, 40), bool)
    truth[0, :10] = True
    specks, piece = np.zeros((2, 2, 30, 40), bool)
    specks[1, ::3, ::3] = True  # 140 pixels, none beside another
    piece[1, 20, : FALSE_PIXELS + 1] = True
    for answer in (truth, specks, piece):
        score.add(answer, truth)
    assert (score.false_pairs, score.false_pictures, score.absent_pairs) == (1, 1, 3)
    assert score.false_rate() == score.false_picture_rate() == 1 / 3
    assert (
        largest_piece(specks[1]) == 1 and largest_piece(piece[1]) == FALSE_PIXELS + 1 and largest_piece(truth[1]) == 0
    )
    piece[1, 20, FALSE_PIXELS] = False
    few = Score(["there", "not"])
    few.add(piece, truth)
    assert few.false_pairs == 0


def test_the_strongest_prompt_is_the_one_the_runtime_shows():
    logits = np.random.default_rng(0).normal(size=(5, 20, 30)).astype(np.float32)
    logits[3] = logits[1]  # equal answers: the first wins
    shown = label(list(logits), lambda plane: plane, (20, 30), Rules(labels="strongest")).label_map
    assert np.array_equal(choose_labels(torch.from_numpy(logits), "strongest or none")[1], shown.astype(int) - 1)
    assert choose_labels(torch.from_numpy(logits), "strongest")[1].min() == 0


def test_predictors_ask_a_model_where_it_is(nano):
    """On a device without any memory: every tensor of both paths must be there, or the operations refuse."""
    parts = copy.copy(nano)
    for name in ("vae", "text_encoder", "reference", "student"):
        setattr(parts, name, copy.deepcopy(getattr(nano, name)))
    pixels, prompts = torch.zeros(1, 3, 64, 64), ["soil", "weed"]
    on_device(parts, "meta")
    text = parts.student.fold_text(*encode_text(parts.text_encoder, parts.tokenizer, prompts))
    assert student_logits(parts, pixels, text).device.type == "meta"
    for steps, noise in ((1, False), (2, True)):
        assert reference_logits(parts, pixels, prompts, steps, noise).device.type == "meta"
    assert {next(getattr(nano, name).parameters()).device.type for name in ("vae", "student")} == {"cpu"}


def test_a_device_that_is_not_there_is_refused(nano, nano_folder):
    with pytest.raises(UsageError, match="device 'cuda:7' cannot be used"):
        choose_predictors(nano_folder, device="cuda:7")
    with pytest.raises(UsageError, match="device 'abacus' cannot be used"):
        choose_predictors(nano_folder, device="abacus")
    assert on_device(nano, "cpu") is nano


def test_a_backend_is_for_bundles_and_is_named_in_the_report(nano_folder, nano_models):
    with pytest.raises(UsageError, match="--backend openvino runs bundles, and nano is a checkpoint; export it first"):
        choose_predictors(nano_folder, backend="openvino")
    with pytest.raises(UsageError, match="unknown backend 'abacus'"):
        choose_predictors(nano_models.fp32, backend="abacus")
    assert choose_predictors(nano_models.fp32, backend="onnxruntime")[1].endswith(", onnxruntime")
    assert Request(backend="onnxruntime").about("m", WorkingSize(64, 64), [])["backend"] == "onnxruntime"


def folders(root, *splits, count=1):
    for split in splits:
        for n in range(count):
            picture(root / f"images/{split}/{n}.png", n)
            grey(root / f"masks/{split}/{n}.png", label_map([1, 2], n))
    (root / "classes.json").write_text(json.dumps({"classes": [{"name": "a", "id": 1}, {"name": "b", "id": 2}]}))
    return root


@pytest.mark.parametrize(
    ("splits", "chosen"),
    [(("train", "validation"), "validation"), (("train", "valid"), "valid"), (("train", "Test", "Val"), "Val"),
     (("training", "holdout"), "holdout"), (("a-fold", "train"), "a-fold"), (("train", "trainaug", "zebra"), "zebra"),
     (("train",), "train")],
)  # fmt: skip
def test_scoring_chooses_the_pictures_that_were_held_out(tmp_path, splits, chosen):
    folder = folders(tmp_path, *splits)
    assert held_out_split(folder, None) == chosen
    said = LabelledPictures(folder, 5).notes
    assert said == [] if chosen != "train" else "no split of" in said[0] and "trained on" in said[0]
    assert LabelledPictures(folder, 5, split="train" if "train" in splits else splits[0]).notes == []


def test_fewer_pictures_than_there_are_are_a_random_choice_that_stays(tmp_path):
    folder = folders(tmp_path, "val", count=40)
    first, again = LabelledPictures(folder, 10), LabelledPictures(folder, 10)
    assert first.numbers == again.numbers == sorted(set(first.numbers)) and max(first.numbers) > 20
    assert len(first) == 10 and first[3].name == open_dataset(folder, split="val").records[first.numbers[3]].name
    assert first.notes == ["folder val: a random choice of 10 of 40 pictures, always the same"]
    assert LabelledPictures(folder, 40).numbers == list(range(40)) and not LabelledPictures(folder, 40).notes


def test_the_command_prints_a_line_per_class_the_worst_first(nano_folder, tmp_path, capsys):
    folder = folders(tmp_path / "d", "train", count=3)
    asked = dict(command.COMMAND.completed({"model": nano_folder, "data": str(folder), "count": 2, "size": 64}))
    command.run(**{**asked, "report": tmp_path / "r.json", "device": "cpu"})
    said = capsys.readouterr()
    assert "folder train: classes, the worst first" in said.out and "have a false alarm" in said.out
    assert "a random choice of 2 of 3 pictures" in said.err and "may have been trained on" in said.err
    body = json.loads((tmp_path / "r.json").read_text())
    assert body["device"] == "cpu" and len(body["notes"]) == 2
    assert "folder train, false alarms, each prompt alone" in body["figures"]


def test_classes_are_ordered_by_iou_and_the_rest_is_counted():
    score = Score(["good", "bad", "never"])
    truth = np.zeros((3, 8, 8), bool)
    truth[0, :4], truth[1, 4:] = True, True
    answer = truth.copy()
    answer[1, 4:6] = False
    score.add(answer, truth)
    both = SimpleNamespace(together=score, alone=score)
    assert [str(cell) for cell in class_table("x", both, 9).columns[0].cells] == ["bad", "good"]
    short = class_table("x", both, 1)
    assert short.row_count == 1 and "1 better ones" in str(short.caption)


def test_the_documented_false_alarms_are_the_committed_ones():
    root = Path(__file__).resolve().parents[2]
    figures = json.loads((root / "benchmarks/results/eval-tiny-bundle.json").read_text())["figures"]
    text = (root / "docs/evaluation.md").read_text()
    for name in ("objects", "textures"):
        area, rate = (figures[f"{name}, {kind}, each prompt alone"] for kind in ("false area", "false alarms"))
        pictures = figures[f"{name}, pictures with a false alarm, each prompt alone"]
        line = next(line for line in text.splitlines() if line.startswith(f"| {name} ("))
        assert line.endswith(f"| {100 * area:.2f} % | {100 * rate:.1f} % | {100 * pictures:.0f} % |"), line
