"""Protocols: every preset scores the data set it is named after, by that benchmark's figure, and refuses others."""

import json
from pathlib import Path

import numpy as np
import pytest

from digseg_engine.commands import eval as command
from digseg_engine.data.layouts import known_layout, layout_names
from digseg_engine.errors import InputError, UsageError
from digseg_engine.evaluation.metrics import Score
from digseg_engine.evaluation.presets import FIGURES, protocol_names, read_protocol
from digseg_engine.evaluation.protocols import EVERY
from digseg_engine.evaluation.score import Request, evaluate, score_model
from digseg_engine.evaluation.views import WHOLE, Views
from tests.training import dataset_trees

TREES = {"ade20k": "ade20k", "cityscapes": "cityscapes", "voc": "voc2012", "pascal-context": "pascal_context",
         "coco-stuff": "coco_stuff", "loveda": "loveda", "phenobench": "phenobench", "kvasir": "kvasir",
         "isic": "isic2018"}  # fmt: skip


def test_every_protocol_names_layouts_splits_and_a_figure_that_exist():
    assert set(protocol_names()) == {*TREES, "mess"}
    for name in protocol_names():
        protocol = read_protocol(name)
        assert protocol.figure in FIGURES and hasattr(Score, protocol.figure)
        assert set(protocol.layouts) <= set(layout_names())
        assert all(protocol.split in (None, *known_layout(layout).splits) for layout in protocol.layouts)
    with pytest.raises(UsageError, match="unknown protocol 'ade'; expected one of ade20k, "):
        read_protocol("ade")


def test_the_documented_protocols_are_the_presets():
    text = (Path(__file__).resolve().parents[2] / "docs/evaluation.md").read_text(encoding="utf-8")
    lines = [line.split(" | ") for line in text.splitlines() if line.startswith("| `")]
    found = {cells[0].strip("| `"): cells[1:] for cells in lines}
    assert set(protocol_names()) <= set(found)
    for name in protocol_names():
        protocol = read_protocol(name)
        about, shown, figure = found[name]
        assert about == f"{protocol.title}, {protocol.split or 'the held-out'} split"
        assert ("shorter side 512" in shown, "windows" in shown) == (protocol.short_side == 512, protocol.slide)
        assert figure.strip(" |") == FIGURES[protocol.figure]


def oracle(samples):
    known = {samples[i].image.tobytes(): samples[i].truth for i in range(len(samples))}
    return lambda image, prompts: np.where(known[image.tobytes()], 1.0, -1.0).astype(np.float32)


@pytest.mark.parametrize("name", TREES)
def test_a_right_answer_scores_one_by_its_protocol(name, tmp_path):
    getattr(dataset_trees, TREES[name])(tmp_path)
    protocol = read_protocol(name)
    (samples,) = Request(data=str(tmp_path), count=EVERY, protocol=protocol).samples(64)
    assert len(samples) > 0 and (protocol.split is None or f" {protocol.split}" in samples.name)
    assert protocol.result({samples.name: evaluate(oracle(samples), samples)}) == 1
    other = read_protocol("kvasir" if name != "kvasir" else "isic")
    with pytest.raises(UsageError, match=f"--protocol {other.name} scores"):
        Request(data=str(tmp_path), count=EVERY, protocol=other).samples(64)


def test_own_layout_is_scored_by_a_protocol_where_it_has_its_classes(tmp_path):
    protocol, names = read_protocol("loveda"), known_layout("loveda").table.names
    dataset_trees.own(tmp_path / "right")
    (tmp_path / "right" / "classes.json").write_text(json.dumps({"classes": list(names)}))
    assert protocol.layout_of(tmp_path / "right", None) == "folder"
    dataset_trees.own(tmp_path / "other")
    with pytest.raises(UsageError, match=r"scores the 7 classes of LoveDA \(.*, \.\.\.\); .* leave --protocol out"):
        protocol.layout_of(tmp_path / "other", None)


def test_fewer_pictures_than_the_benchmark_has_are_said():
    protocol = read_protocol("ade20k")
    assert protocol.pictures == 2000 and "2000 pictures, 8 were scored" in protocol.shortfall(8)
    assert protocol.shortfall(2000) == read_protocol("kvasir").shortfall(8) == ""


def test_many_data_sets_are_scored_one_after_the_other(tmp_path, nano_folder, capsys):
    for name in ("ade20k", "kvasir"):
        getattr(dataset_trees, name)(tmp_path / name)
    (tmp_path / "notes").mkdir()
    command.run(**command.COMMAND.completed({"model": nano_folder, "data": str(tmp_path), "protocol": "mess", "size": 64,
                                             "report": tmp_path / "r.json", "device": "cpu"}))  # fmt: skip
    body = json.loads((tmp_path / "r.json").read_text())
    assert [name.split(",")[0] for name in body["pictures"]] == ["ade20k", "kvasir"]
    each = [value for key, value in body["figures"].items() if key in body["pictures"]]
    assert body["protocol"]["value"] == pytest.approx(np.mean(each)) and len(each) == 2
    assert "protocol mess: mIoU" in capsys.readouterr().out
    with pytest.raises(InputError, match="holds no folder that is a data set"):
        read_protocol("mess").folders(tmp_path / "notes")


def test_figures_of_single_pictures():
    score = Score(["lesion"])
    for share in (1.0, 0.7, 0.5):
        truth, answer = np.zeros((2, 1, 10, 10), bool)
        truth[0, :, :], answer[0, : round(10 * share)] = True, True
        score.add(answer, truth)
    score.add(truth & False, truth & False)  # no lesion, none answered
    assert score.picture_iou() == pytest.approx((1 + 0.7 + 0.5) / 3)
    assert score.thresholded_jaccard() == pytest.approx(1.7 / 3)
    assert score.presence.tolist() == [[1, 0], [0, 3]] and score.presence_mcc() == 1


def test_a_protocol_decides_how_pictures_are_shown():
    given = Views(scales=(0.75, 1.0), flip=True)
    shown = read_protocol("ade20k").views(given)
    assert (shown.slide, shown.short_side, shown.scales, shown.flip) == (True, 512, (0.75, 1.0), True)
    assert read_protocol("kvasir").views(WHOLE) == WHOLE


def test_views_reach_the_model_from_the_command(nano_folder, tmp_path):
    found = {}
    dataset_trees.kvasir(tmp_path / "d")
    for name, options in {"plain": {}, "slide": {"slide": True}, "scales": {"scales": (0.5, 1.0)}, "flip": {"flip": True},
                          "short": {"short_side": 96}}.items():  # fmt: skip
        asked = {"model": nano_folder, "data": str(tmp_path / "d"), "size": 32, "report": tmp_path / f"{name}.json"}
        command.run(**command.COMMAND.completed({**asked, **options, "device": "cpu"}))
        body = json.loads((tmp_path / f"{name}.json").read_text())
        found[name] = tuple(value for key, value in body["figures"].items() if "false" not in key)
        assert body["views"]["slide"] is (name == "slide")
    assert len(set(found.values())) == len(found)  # each makes other masks


def test_seeds_choose_other_pictures(tmp_path):
    dataset_trees.own(tmp_path, count=12)
    first, second = (Request(data=str(tmp_path), count=5, seed=seed).samples(64)[0] for seed in (0, 1))
    assert first.numbers != second.numbers and "that of seed 1" in second.notes[0]
    assert len(Request(data=str(tmp_path), count=EVERY).samples(64)[0]) == 12
    with pytest.raises(UsageError, match="--seed chooses pictures of a folder"):
        Request(data="scenes", seed=1).samples(64)


@pytest.mark.parametrize(
    ("words", "message"),
    [({"protocol": "ade20k"}, "scores a folder of labelled pictures; add --data FOLDER"),
     ({"data": "scenes", "count": EVERY}, "of scenes there is no end")],
)  # fmt: skip
def test_what_cannot_be_scored_is_refused(words, message, nano_folder):
    with pytest.raises(UsageError, match=message):
        command.run(**command.COMMAND.completed({"model": nano_folder, **words}))


@pytest.mark.parametrize("text", ["0", "-3", "some", "1.5"])
def test_counts_are_numbers_or_all(text):
    option = next(option for option in command.COMMAND.options if option.name == "count")
    assert option.read("all") == EVERY and option.read("7") == 7
    with pytest.raises(UsageError, match="--count must be a whole number of at least 1, or all"):
        option.read(text)


def test_the_report_draws_confusion_and_calibration_where_they_are(nano_folder, tmp_path):
    score_model(Request(nano_folder, "scenes:crops,microscopy", 2), tmp_path / "r.json")
    assert {path.name for path in tmp_path.glob("r*")} == {
        "r.json", "r.csv", "r.png", "r-confusion.png", "r-calibration.png"
    }  # fmt: skip
    body = json.loads((tmp_path / "r.json").read_text())
    assert set(body["confusion"]) >= {"crops"} and "microscopy" not in body["confusion"]
    bins = body["calibration"]["crops"]["bins"]
    assert sum(row["share"] for row in bins) == pytest.approx(1) and body["calibration"]["microscopy"]["bins"] == []
    score_model(Request(nano_folder, "scenes:microscopy", 1), tmp_path / "m.json")
    assert not list(tmp_path.glob("m-*.png"))
