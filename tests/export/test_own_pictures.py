"""Verification and calibration on pictures of the user's own: which are taken, what they are asked, and that it counts."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from digseg_engine.bundle import open_bundle
from digseg_engine.data.shares import parse_shares
from digseg_engine.errors import InputError, UsageError
from digseg_engine.model.pretrained import load_checkpoint
from digseg_engine.precisions import spec_of
from digseg_engine.worlds.scenes import DOMAINS
from digseg_export.calibration import calibration, painted_domains
from digseg_export.own_pictures import STRANGERS, evenly, own_mixture, own_pictures, trained_on
from digseg_export.publish import Options, export_bundle, recorded
from digseg_export.request import Request
from digseg_export.verify import evidence, samples


@pytest.fixture
def labelled(tmp_path):
    """Four pictures, two classes; only the second class is in the validation picture."""
    folder = tmp_path / "leaves"
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(4):
        mask = np.zeros((40, 64), np.uint8)
        mask[8:30, 8:40] = 2 if i == 3 else 1 + i % 2
        Image.fromarray(rng.integers(0, 255, (40, 64, 3), dtype=np.uint8)).save(folder / "images" / f"{i}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{i}.png")
    classes = [{"name": "leaf", "id": 1, "prompt": "green leaf"}, {"name": "stem", "id": 2}]
    (folder / "classes.json").write_text(json.dumps({"classes": classes, "background": 0}))
    (folder / "train.txt").write_text("0\n1\n2\n")
    (folder / "val.txt").write_text("3\n")
    return folder


def test_of_a_labelled_folder_the_held_out_pictures_are_asked_what_is_in_them_first(labelled):
    own = own_pictures(labelled)
    assert [shown.path.name for shown in own.examples] == ["3.png"]
    assert own.examples[0].prompts[0] == "stem" and set(own.examples[0].prompts[2:]) <= set(STRANGERS)
    assert len(own.examples[0].prompts) == 5 and "val" in own.origin
    assert len(own_pictures(labelled, held_out=False).examples) == 3


def test_plain_pictures_with_prompts_are_taken_evenly(labelled):
    pictures = labelled / "images"
    (pictures / "prompts.txt").write_text("leaf\n\nstem\n")
    own = own_pictures(pictures, count=2)
    assert [shown.path.name for shown in own.examples] == ["0.png", "2.png"]
    assert own.examples[0].prompts[:2] == ("leaf", "stem") and own.examples[0].prompts[-1] in STRANGERS
    assert evenly(range(10), 3) == [0, 3, 6]


def test_folders_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(InputError, match="not found"):
        own_pictures(tmp_path / "none")
    with pytest.raises(InputError, match=r"no prompts.txt .* no labelled data set"):
        own_pictures(tmp_path)
    (tmp_path / "prompts.txt").write_text("road\n")
    with pytest.raises(InputError, match="0 pictures and 1 prompts"):
        own_pictures(tmp_path)


def test_the_record_of_a_checkpoint_names_its_training_data_while_they_are_there(tmp_path, labelled):
    (tmp_path / "c" / "training").mkdir(parents=True)
    record = tmp_path / "c" / "training" / "train.json"
    mixed = [f"{labelled}=0.1", "scenes:crops,aerial", str(tmp_path / "gone"), str(tmp_path)]
    for body, wanted in ((json.dumps({"data": str(labelled)}), (labelled,)), (json.dumps({"data": "scenes"}), ()), ("{", ()),
                         (json.dumps({"data": mixed}), (labelled, tmp_path)), ("[" * 100_000, ())):  # fmt: skip
        record.write_text(body)
        assert trained_on(tmp_path / "c") == wanted, body[:60]
    assert trained_on(tmp_path) == () and painted_domains(parse_shares(mixed)) == ("aerial", "crops")


def test_of_a_mixture_every_folder_is_asked_in_turns(labelled, tmp_path):
    other = shutil.copytree(labelled, tmp_path / "other")
    (other / "train.txt").write_text("0\n")
    own = own_mixture([labelled, other], held_out=False)
    assert [shown.path.parents[1].name for shown in own.examples] == [
        labelled.name,
        "other",
        labelled.name,
        labelled.name,
    ]
    assert own.origin.count(";") == 1 and "other (train)" in own.origin
    assert len(own_mixture([labelled, other], count=1).examples) == 2


def test_what_is_not_asked_for_is_as_the_record_has_it(labelled, tmp_path):
    (tmp_path / "training").mkdir()
    data = [str(labelled), "scenes:crops=0.5"]
    (tmp_path / "training" / "train.json").write_text(json.dumps({"data": data}))
    found = recorded(Options(), tmp_path)
    assert (found.calibration, found.verify_data, found.painted) == ((labelled,), (labelled,), ("crops",))
    asked = recorded(Options(calibration=(tmp_path,)), tmp_path)
    assert (asked.calibration, asked.verify_data, asked.painted) == ((tmp_path,), (labelled,), ())


def test_a_mixture_calibrates_on_all_of_it(nano, labelled):
    batches, words = calibration(nano, (labelled,), ("crops",))
    assert [len(batch.image) for batch in batches] == [1, 1, 1, 8]
    assert "3 pictures of" in words and words.endswith("; 8 training scenes of each of crops, with their prompts")
    assert len(calibration(nano)[0]) == len(DOMAINS)


def test_samples_and_calibration_are_the_users_pictures(nano, labelled):
    own = own_pictures(labelled, held_out=False)
    found = samples(nano, own)
    assert [sample.prompts for sample in found] == [shown.prompts for shown in own.examples]
    assert {sample.image.shape[1:] for sample in found} == {(3, 48, 64)} or found[0].image.shape[
        -1
    ] == nano.config.image_size
    batches, words = calibration(nano, (labelled,))
    assert len(batches) == 3 and "train" in words


@pytest.mark.slow
def test_an_export_verifies_on_the_training_data_by_itself(pico_folder, labelled, tmp_path):
    checkpoint = tmp_path / "mine"
    shutil.copytree(pico_folder, checkpoint)
    (checkpoint / "training").mkdir(exist_ok=True)
    (checkpoint / "training" / "train.json").write_text(json.dumps({"data": str(labelled)}))
    done = export_bundle(checkpoint, "fp16", tmp_path / "b", replace(spec_of("fp16").limits, iou=0.5))
    said = open_bundle(tmp_path / "b").manifest["verification"]
    assert said["data"] == "1 pictures of leaves (val), asked for its classes"
    assert said["evidence"] == evidence(done.checks) and "too little evidence" in said["evidence"]


def test_too_little_evidence_advises_what_helps_whatever_was_done():
    assert "pictures of your own" not in (said := evidence([]))
    assert said.endswith("verify on more pictures in which the model finds what is asked for (--verify-data FOLDER)")


def test_a_folder_that_is_not_there_is_refused_before_any_work(tmp_path, pico_folder):
    with pytest.raises(InputError, match="not found"):
        export_bundle(pico_folder, "fp16", tmp_path / "b", options=Options(verify_data=(tmp_path / "none",)))
    with pytest.raises(UsageError, match="--verify-data does not apply"):
        Request(layout="diffusers", verify_data=tmp_path).check()
    assert load_checkpoint(pico_folder) is not None and not (tmp_path / "b").exists()
