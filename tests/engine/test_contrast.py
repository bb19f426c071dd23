"""Contrast prompts compete for pixels and are not returned; prepared prompts are asked without being read again."""

import json

import numpy as np
import pytest
from conftest import run_command

from digseg_engine import Engine
from digseg_engine.errors import InputError, UsageError
from digseg_engine.images import unfit_plane
from digseg_engine.runtime.labels import Rules, label
from digseg_engine.runtime.pipeline import contrasts
from digseg_engine.runtime.prompts import Prepared

PROMPTS, AGAINST = ["soil", "weed"], ["crop row", "red star", "water"]


@pytest.fixture(scope="module")
def engine(nano_models):
    return Engine.load(nano_models.fp32, "onnxruntime")


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 255, (70, 90, 3), np.uint8)


def logits_of(engine, image, prompts):
    """Full-size logits [K, H, W] of every prompt."""
    result = engine.segment(image, prompts)
    return np.stack([unfit_plane(result.frame, plane) for plane in result.planes])


def threshold_of(engine, image):
    """A probability at which masks of these prompts neither fill the picture nor are empty."""
    return float(1 / (1 + np.exp(-np.median(logits_of(engine, image, PROMPTS)))))


def test_a_pixel_goes_to_a_prompt_only_where_no_contrast_prompt_is_stronger(engine, image):
    threshold = threshold_of(engine, image)
    asked, rivals = logits_of(engine, image, PROMPTS), logits_of(engine, image, AGAINST)
    border = Rules(threshold).border
    want = (asked > np.float32(border)) & (asked > rivals.max(0))
    plain = engine.segment(image, PROMPTS, threshold=threshold)
    assert 0 < want.sum() < plain.masks.sum()  # the contrast takes some pixels, not all
    for keep in (True, False):
        result = engine.segment(image, PROMPTS, threshold=threshold, against=AGAINST, keep_masks=keep)
        assert result.prompts == tuple(PROMPTS) and len(result.planes) == len(result.logits) == 2
        assert np.array_equal(result.masks, want) and np.array_equal(result.mask(1), want[1])
        strongest = np.where(want.any(0), np.where(want, asked, -np.inf).argmax(0) + 1, 0)
        rule = engine.segment(image, PROMPTS, threshold=threshold, labels="strongest", against=AGAINST, keep_masks=keep)
        assert np.array_equal(rule.label_map, strongest)
        assert np.array_equal(result.areas, want.mean((1, 2)))
        assert result.as_dict()["against"] == AGAINST
        assert np.array_equal(np.asarray(result.overlay()), np.asarray(rule.overlay()))
    assert plain.as_dict()["against"] == []
    assert np.array_equal(plain.logits, result.logits)  # what a prompt answers does not depend on its company


def test_batches_streams_and_tiles_are_asked_alike(engine, image, tmp_path):
    threshold = threshold_of(engine, image)
    want = engine.segment(image, PROMPTS, threshold=threshold, against=AGAINST).masks
    (batch,) = engine.segment_batch([image], PROMPTS, threshold=threshold, against=AGAINST)
    (streamed,) = engine.stream([image], PROMPTS, threshold=threshold, against=AGAINST)
    assert np.array_equal(batch.masks, want) and np.array_equal(streamed.masks, want)
    tiles = {}
    for name, against in (("without", ()), ("with", AGAINST)):
        done = engine.segment_tiles(
            image, PROMPTS, tmp_path, name, 64, size=64, masks=True, threshold=threshold, against=against
        )
        tiles[name] = np.load(tmp_path / f"{name}.masks.npy")
        assert tiles[name].shape[0] == 2 and done.prompts == tuple(PROMPTS)
        assert json.loads((tmp_path / f"{name}.json").read_text())["against"] == list(against)
        assert np.array_equal(np.asarray(done.label_map) > 0, tiles[name].any(0))
    assert 0 < tiles["with"].sum() < tiles["without"].sum()
    assert not (tiles["with"] & ~tiles["without"]).any()


def test_a_whole_vocabulary_may_be_the_contrast():
    assert contrasts(["soil", "weed"], ["weed", "road", "soil", "road", "sky"]) == ["road", "sky"]
    assert contrasts(["soil"], ["soil"]) == contrasts(["soil"], []) == []
    with pytest.raises(InputError, match="prompt 1 is empty"):
        contrasts(["soil"], ["road", " "])
    with pytest.raises(InputError, match="got the single text 'road'"):
        contrasts(["soil"], "road")


def test_equal_logits_belong_to_nobody():
    plane = np.array([[2.0, 1.0, -1.0]], np.float32)
    answer = label([plane], lambda each: each, (1, 3), Rules(), [np.array([[2.0, 0.5, -3.0]], np.float32)])
    assert answer.label_map.tolist() == [[0, 1, 0]] and answer.masks.tolist() == [[[False, True, False]]]


def test_prepared_prompts_are_taken_wherever_prompts_are(engine, image, tmp_path, monkeypatch):
    want = engine.segment(image, PROMPTS)
    prepared = engine.prepare(PROMPTS)
    assert list(prepared) == PROMPTS and len(prepared) == 2 and prepared[0] == "soil" and prepared[:1] == ("soil",)
    assert repr(prepared) == "Prepared(['soil', 'weed'])"
    pixels = np.zeros((1, 3, 64, 64), np.float32)
    logits = engine.logits(pixels, PROMPTS)
    engine.prompts.clear()

    def never(prompt):
        raise AssertionError(f"{prompt!r} was read again")

    monkeypatch.setattr(engine.prompts, "one", never)
    for again in (
        engine.segment(image, prepared),
        *engine.segment_batch([image], prepared),
        *engine.stream([image], prepared),
    ):
        assert np.array_equal(again.logits, want.logits) and again.prompts == want.prompts
    assert np.array_equal(engine.logits(pixels, prepared), logits)
    monkeypatch.undo()
    both = [engine.segment(image, prompts, against=AGAINST).masks for prompts in (prepared, PROMPTS)]
    assert np.array_equal(*both)
    tiled = engine.segment_tiles(image, prepared, tmp_path, "t", 64, size=64)
    assert tiled.prompts == want.prompts


def test_prompts_of_another_engine_are_refused(engine, image, nano_models):
    other = Engine.load(nano_models.fp32, "onnxruntime").prepare(PROMPTS)
    assert isinstance(other, Prepared)
    for ask in (engine.segment, lambda picture, prompts: engine.segment(picture, prompts, against=AGAINST)):
        with pytest.raises(UsageError, match="prepared by another engine"):
            ask(image, other)
    with pytest.raises(InputError, match="no prompt given"):
        engine.prepare([])


@pytest.mark.slow
def test_the_command_takes_contrast_prompts_and_works_again_when_they_change(nano_models, tmp_path):
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 90, 3), np.uint8)).save(tmp_path / "p.png")
    words = ("digseg", "segment", "p.png", "-p", "soil", "--threshold", "0.4", "--bundle", str(nano_models.fp32),
             "--only", "json", "--skip-existing")  # fmt: skip
    areas = []
    for against in (
        (),
        ("--against", "crop row", "--against", "water"),
        ("--against", "crop row", "--against", "water"),
    ):
        done = run_command(*words, *against, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        body = json.loads((tmp_path / "out" / "p.json").read_text())
        areas.append((body["masks"][0]["area"], "skipped" in done.stderr))
        assert body["against"] == [word for word in against if word != "--against"]
    assert areas[1][0] < areas[0][0] and [skipped for _, skipped in areas] == [False, False, True]
