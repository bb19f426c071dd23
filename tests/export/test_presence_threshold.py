"""The threshold below which a prompt is "not there": the largest that keeps the recall, and none where too little is known."""

import json

import numpy as np
import pytest
from conftest import run_command
from pico_exports import *  # noqa: F403
from pico_exports import export
from PIL import Image

from digseg_engine.bundle import open_bundle
from digseg_engine.contract import PRESENCE
from digseg_engine.data.shares import Share
from digseg_engine.errors import VerificationError
from digseg_engine.runtime.backends.ort_backend import OrtBackend
from digseg_engine.runtime.source import open_source
from digseg_engine.worlds.scenes import CLASSES, DOMAINS, scene
from digseg_export import presence_threshold
from digseg_export.conversion import PRESENCE_EXACT
from digseg_export.own_pictures import own_pictures
from digseg_export.presence_threshold import ENOUGH, RECALL, Known, choose_threshold, decide, labelled
from digseg_export.verify import Graphs


def known(present: int, absent: int):
    """Logits spread evenly: what is there from 0 up to 10, what is not from -10 up to 5; shuffled."""
    logits = np.concatenate([np.linspace(0, 10, present), np.linspace(-10, 5, absent)]).astype(np.float32)
    truth = np.arange(present + absent) < present
    order = np.random.default_rng(0).permutation(len(logits))
    return logits[order], truth[order]


def test_the_threshold_is_the_largest_that_keeps_the_recall():
    logits, truth = known(1000, 3000)
    chosen = decide([Known(logits, truth, "made up")])
    assert chosen["threshold"] == 0.05 and chosen["pairs"] == {"present": 1000, "absent": 3000}
    assert chosen["recall"] == pytest.approx((logits[truth] >= 0.05).mean()) and chosen["recall"] >= RECALL
    assert (logits[truth] >= chosen["threshold"] + 0.02).mean() < RECALL  # one step of the grid more hides too much
    assert (
        chosen["turned_away"] == pytest.approx((logits[~truth] < 0.05).mean()) and 0.66 < chosen["turned_away"] < 0.68
    )
    assert 0.5 < chosen["mcc"] < 0.7 and chosen["sets"][0]["data"] == "made up" and "reason" not in chosen


@pytest.mark.parametrize("present", [1, ENOUGH - 1, ENOUGH])
def test_a_recall_of_a_few_is_none(present):
    chosen = decide([Known(*known(present, 50), "little")])
    if present == ENOUGH:  # one of 200 may be hidden
        assert chosen["threshold"] == 0.05 and chosen["recall"] == RECALL
        return
    assert chosen["threshold"] is None and chosen["recall"] == 1.0 and chosen["turned_away"] == 0.0
    assert (
        chosen["mcc"] is None
        and f"{present} pairs with something there, at least {ENOUGH} expected" in chosen["reason"]
    )


def test_all_there_nothing_there_and_no_number():
    logits, truth = known(300, 0)
    nothing = decide([Known(logits, ~truth, "")])
    assert (
        decide([Known(logits, truth, "")])["turned_away"] is None and nothing["recall"] is nothing["threshold"] is None
    )
    logits[7] = np.nan
    with pytest.raises(VerificationError, match=r"presence\.onnx gives NaN or infinity"):
        decide([Known(logits, truth, "")])


def test_every_set_with_enough_keeps_its_recall():
    """Pictures whose logits are lower than those of many others."""
    logits, truth = known(2000, 6000)
    some = Known(logits[:1200] - 3, truth[:1200], "some")
    chosen = decide([Known(logits, truth, "many"), some])
    assert [one["data"] for one in chosen["sets"]] == ["many", "some"] and some.present.sum() >= ENOUGH
    assert chosen["threshold"] < 0 and chosen["sets"][1]["recall"] >= RECALL
    assert decide([Known(logits, truth, "many")])["threshold"] > chosen["threshold"] + 1
    assert chosen["pairs"]["present"] == sum(one["pairs"]["present"] for one in chosen["sets"])


def test_a_checkpoints_own_threshold_is_never_exceeded():
    logits, truth = known(1000, 3000)
    pictures = [Known(logits, truth, "")]
    free, held, low = decide(pictures), decide(pictures, -2.5), decide(pictures, 9.0)
    assert held["threshold"] == -2.5 < free["threshold"] == low["threshold"]
    assert held["turned_away"] < free["turned_away"] and held["recall"] == 1.0
    assert decide([Known(logits[:60], truth[:60], "")], -2.5)["threshold"] is None


def test_one_picture_that_the_model_cannot_read_does_not_open_the_gate():
    logits, truth = known(2000, 6000)
    few = Known(np.append(logits[:60], -20.0), np.append(truth[:60], True), "few")
    chosen, plain = decide([Known(logits, truth, "many"), few]), decide([Known(logits, truth, "many")])
    assert few.present.sum() < ENOUGH and chosen["sets"][1]["recall"] < RECALL <= chosen["recall"]
    assert abs(chosen["threshold"] - plain["threshold"]) < 0.5


def test_painted_scenes_are_asked_for_every_word_of_their_domain(traced):
    (found,) = labelled(traced[0])
    asked = list(found.asked())
    assert len(asked) == 10 * len(DOMAINS) and "10 test scenes of each of objects" in found.data
    assert {one.prompts for one in asked} == {CLASSES[domain] for domain in DOMAINS}
    first, names = asked[0], scene(80_000, DOMAINS[0], 32, "test").names()
    assert {name for name, there in zip(first.prompts, first.present[0]) if there} == set(names) and names
    assert first.image.shape == (1, 3, 32, 32)


@pytest.fixture
def data(tmp_path):
    """Three labelled pictures: a dark ground, a bright square in the first two; what is in the third is called "zebra"."""
    for kind in ("images", "masks"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    for i, label in enumerate((1, 1, 2)):
        pixels, ids = np.full((32, 32, 3), 40, np.uint8), np.full((32, 32), 3, np.uint8)
        pixels[8:20, 8:20], ids[8:20, 8:20] = 90 * label, label
        Image.fromarray(pixels).save(tmp_path / "data" / "images" / f"{i}.png")
        Image.fromarray(ids).save(tmp_path / "data" / "masks" / f"{i}.png")
    classes = [{"name": name, "id": 1 + i} for i, name in enumerate(("square", "zebra", "ground"))]
    (tmp_path / "data" / "classes.json").write_text(json.dumps({"classes": classes, "background": 0}))
    return tmp_path / "data"


def test_own_labelled_pictures_come_before_painted_scenes_and_say_what_is_there(traced, data, tmp_path):
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "prompts.txt").write_text("square\n")
    shares = (Share("scenes:crops"), Share(str(data)), Share(str(tmp_path / "gone")))
    (found,) = labelled(traced[0], [data])
    assert "pictures of data" in found.data
    truth = [{name: bool(there) for name, there in zip(one.prompts, one.present[0])} for one in found.asked()]
    assert [(one["ground"], one["square"], one["zebra"]) for one in truth] == [(True, True, False)] * 2 + [
        (True, False, True)
    ]
    assert not any(one["lighthouse"] for one in truth)
    assert own_pictures(data, prompts=3).examples[0].labelled == 2
    own, crops = labelled(traced[0], [plain], shares)  # pictures and words alone say nothing of what is there
    assert own.data == found.data and "of each of crops, asked" in crops.data
    (scenes,) = labelled(traced[0], [plain])
    assert "test scenes of each of objects" in scenes.data
    assert [one.data for one in labelled(traced[0], [data], shares)] == [own.data, crops.data]
    assert len(labelled(traced[0], [data], shares[:1])) == 1  # pictures that were asked for, and no others


def test_it_is_chosen_with_the_written_graphs_and_written(traced, tmp_path):
    done = export(traced, tmp_path / "b", "fp16", {})
    manifest = open_bundle(tmp_path / "b").manifest
    stated = manifest["presence"]
    assert stated == done.presence and stated["pairs"]["present"] >= ENOUGH and stated["recall"] >= RECALL
    specs = [spec for name, spec in open_bundle(tmp_path / "b").graphs.items() if name != "mask_decoder"]
    again = choose_threshold(traced[0], Graphs.of(tmp_path / "b", specs, True), labelled(traced[0]), lambda text: None)
    assert again == stated
    assert manifest["contract"]["graphs"]["presence"]["file"] == PRESENCE.file
    backend, source = OrtBackend(open_source(tmp_path / "b")), open_source(tmp_path / "b")
    golden = source.golden
    assert source.presence_threshold == stated["threshold"]
    keys, values = backend.encode_text(golden.token_ids, golden.token_mask)
    found = backend.presence(backend.encode_image(golden.image), keys, values, golden.token_mask)
    assert golden.presence.shape == found.shape == (1, 3) and np.abs(found - golden.presence).max() < 1e-3


def test_in_an_int8_bundle_presence_stays_in_float32(traced, tmp_path):
    done = export(traced, tmp_path / "b", "int8", {})
    about = done.policy["graphs"]
    assert about["presence.onnx"] == {"name": "fp32", "quantised": 0, "reason": PRESENCE_EXACT}
    assert about["mask_decoder.onnx"]["quantised"] and about["image_encoder.onnx"]["quantised"]
    operators = open_bundle(tmp_path / "b").manifest["graphs"]["presence.onnx"]["operators"]
    assert "MatMul" in operators and "QuantizeLinear" not in operators


@pytest.mark.slow
def test_the_command_takes_the_labels_of_verify_data(pico_folder, data, tmp_path):
    loose = ["--rtol", "0.5", "--min-iou", "0.1", "--verify-data", str(data)]  # random weights
    done = run_command("digseg-export", str(pico_folder), "--precision", "fp32", "-o", "b", *loose, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    stated = json.loads((tmp_path / "b" / "manifest.json").read_text())["presence"]
    assert stated["pairs"] == {"present": 6, "absent": 9} and stated["threshold"] is None
    assert "presence: no prompt is turned away: 6 pairs with something there" in done.stdout


def test_the_pictures_are_those_of_no_evaluation():
    from digseg_engine.evaluation.protocols import TEST_SEED, VALIDATION_SEED

    assert min(TEST_SEED, VALIDATION_SEED) > 80_000 + presence_threshold.SCENES_PER_DOMAIN
