"""Prompts that are not in a picture: said so, never decoded, and without a trace in what the others find."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from digseg_engine import Engine
from digseg_engine.contract import ABSENT
from digseg_engine.errors import BackendError, UsageError
from digseg_engine.runtime.backends import BackendKind, Usable
from digseg_engine.runtime.backends.ort_backend import OrtBackend
from digseg_engine.runtime.choice import check_golden, named
from digseg_engine.runtime.chunks import ChunkedRunner, Stretch
from digseg_engine.runtime.labels import Rules
from digseg_engine.runtime.presence import Gate, ask
from digseg_engine.runtime.source import open_source


@pytest.fixture(scope="module", params=["onnxruntime", "torch"])
def engine(request, with_presence):
    return Engine.load(with_presence.checkpoint if request.param == "torch" else with_presence.bundle, request.param)


def logit(probability):
    return np.log(probability / (1 - probability))


def test_what_is_not_there_is_empty_and_the_others_are_as_if_all_were_asked(engine, with_presence):
    picture, prompts = with_presence.pictures[0], with_presence.prompts
    some, every = engine.segment(picture, prompts), engine.segment(picture, prompts, all_prompts=True)
    there = some.there
    assert 0 < there.sum() < len(prompts) and every.there.all()
    assert some.presence.dtype == np.float32 and some.presence.shape == (len(prompts),)
    assert np.array_equal(some.presence, every.presence) and ((some.presence > 0) & (some.presence < 1)).all()
    assert np.array_equal(there, logit(some.presence) >= engine.gate.threshold)
    apart = np.abs(some.logits[there] - every.logits[there]).max()
    assert np.array_equal(some.masks[there], every.masks[there])
    # PyTorch chooses its kernels by the number of prompts, and on some processors they differ in the last bits.
    assert apart == 0 if engine.backend.name == "onnxruntime" else apart <= 1e-6 * np.abs(every.logits).max()
    assert (some.logits[~there] == ABSENT).all() and not some.masks[~there].any() and every.masks[~there].any()
    assert not some.found[~there].any() and not np.isin(some.label_map, 1 + np.flatnonzero(~there)).any()
    for threshold in (1e-6, 0.99):
        assert not engine.segment(picture, prompts, threshold=threshold).masks[~there].any()
    with pytest.raises(UsageError, match="threshold"):
        Rules(1e-9)


def test_they_are_never_decoded(engine, with_presence, monkeypatch):
    asked, plain = [], engine.backend.decode
    monkeypatch.setattr(engine.backend, "decode", lambda *given: asked.append(len(given[1])) or plain(*given))
    result = engine.segment(with_presence.pictures[0], with_presence.prompts)
    assert asked == [result.there.sum()]
    asked.clear()
    absent = [prompt for prompt, there in zip(result.prompts, result.there) if not there]
    nothing = engine.segment(with_presence.pictures[0], absent)
    assert asked == [] and nothing.logits.shape == (len(absent), *result.logits.shape[1:]) and not nothing.masks.any()
    assert engine.segment(with_presence.pictures[0], absent, all_prompts=True).masks.any() and asked == [len(absent)]


def test_every_picture_of_a_batch_has_its_own(engine, with_presence):
    pictures, prompts = with_presence.pictures, with_presence.prompts
    together = engine.segment_batch(pictures, prompts)
    assert len({tuple(result.there) for result in together}) > 1
    for picture, result in zip(pictures, together):
        alone = engine.segment(picture, prompts)
        assert np.array_equal(alone.there, result.there)
        assert np.abs(alone.logits - result.logits).max() <= 1e-4 * np.abs(alone.logits).max()
        (streamed,) = engine.stream([picture], prompts)
        assert np.array_equal(streamed.logits, alone.logits)
    every = engine.segment_batch(pictures, prompts, all_prompts=True)
    assert all(result.there.all() for result in every)


def test_no_prompt_changes_what_another_is(engine, with_presence):
    picture, prompts = with_presence.pictures[2], with_presence.prompts
    together = engine.segment(picture, prompts)
    for k, prompt in enumerate(prompts):
        alone = engine.segment(picture, [prompt])
        assert alone.there[0] == together.there[k] and alone.presence[0] == pytest.approx(
            together.presence[k], abs=1e-5
        )
        assert np.abs(alone.logits[0] - together.logits[k]).max() <= 1e-4 * np.abs(together.logits[k]).max()


def test_a_contrast_prompt_that_is_not_there_takes_no_pixel(engine, with_presence):
    picture, prompts = with_presence.pictures[0], with_presence.prompts
    result = engine.segment(picture, prompts)
    there, absent = (
        [p for p, found in zip(prompts, result.there) if found is np.bool_(sure)] for sure in (True, False)
    )
    plain, against = engine.segment(picture, there[:1]), engine.segment(picture, there[:1], against=absent)
    assert np.array_equal(plain.masks, against.masks) and plain.masks.any()
    assert engine.segment(picture, there[:1], against=absent, all_prompts=True).masks.sum() < plain.masks.sum()


def test_tensors_and_label_maps_go_the_same_road(engine, with_presence):
    torch = pytest.importorskip("torch")
    pixels = torch.rand(3, 3, 32, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    engine.gate = Gate(float(np.median(presence_of(engine, pixels.numpy(), with_presence.prompts))), engine.gate.cell)
    try:
        some, every = (
            np.asarray(engine.logits(pixels, with_presence.prompts, all_prompts=each)) for each in (False, True)
        )
        absent = (some == ABSENT).all((2, 3))
        assert 0 < absent.sum() < absent.size and some.shape == every.shape
        assert np.abs(some[~absent] - every[~absent]).max() <= 1e-5 * np.abs(every).max()
        labels = np.asarray(engine.label_map(pixels, with_presence.prompts))
        for b, k in np.argwhere(absent):
            assert not (labels[b] == k + 1).any()
    finally:
        engine.gate = Gate(engine.source.presence_threshold, engine.source.cell)


def presence_of(engine, pixels, prompts):
    places, _ = engine.runner.encode(pixels)
    return np.concatenate([engine.runner.presence(place, engine.prompts.fold(prompts))[0] for place in places])


def test_tiles_say_what_is_in_any_of_them(engine, with_presence, tmp_path):
    picture = np.concatenate(with_presence.pictures[:4], 0)[:, :32]  # of 32 pixels: one on the other
    done = engine.segment_tiles(picture, with_presence.prompts, tmp_path, tile=32, overlap=0, masks=True)
    parts = [engine.segment(picture[top : top + 32], with_presence.prompts) for top in range(0, 128, 32)]
    there = np.any([part.there for part in parts], axis=0)
    assert [answer.there for answer in done.answers] == there.tolist() and not there.all()
    best = np.max([part.presence for part in parts], axis=0)
    assert [answer.presence for answer in done.answers] == pytest.approx(best.tolist(), abs=1e-5)
    masks = np.load(tmp_path / "tiled.masks.npy")
    assert not masks[~there].any() and masks[there].any((1, 2)).all()
    for tile, part in enumerate(parts):  # what is in one tile alone is in that one alone
        for k in np.flatnonzero(there & ~part.there):
            assert not masks[k, tile * 32 + 4 : tile * 32 + 28].any()
    body = json.loads((tmp_path / "tiled.json").read_text())
    assert [mask["there"] for mask in body["masks"]] == there.tolist() and body["all_prompts"] is False


def test_the_json_says_so(engine, with_presence, tmp_path):
    result = engine.segment(with_presence.pictures[0], with_presence.prompts)
    body = result.as_dict()
    assert [mask["there"] for mask in body["masks"]] == result.there.tolist()
    assert [mask["presence"] for mask in body["masks"]] == pytest.approx(result.presence.tolist(), abs=1e-4)
    assert body["all_prompts"] is False
    for all_prompts in (False, True):  # another question: nothing of the first may stand beside it
        answer = engine.segment(with_presence.pictures[0], with_presence.prompts, all_prompts=all_prompts)
        answer.save(tmp_path, "x", ["json"] if all_prompts else ["masks", "json"])
    body = json.loads((tmp_path / "x.json").read_text())
    assert body["all_prompts"] is True and all("file" not in mask for mask in body["masks"])


def test_a_model_without_the_readout_says_nothing(nano_models):
    engine = Engine.load(nano_models.fp32, "onnxruntime")
    result = engine.segment(np.zeros((64, 64, 3), np.uint8), ["red", "water"])
    assert result.presence is None and result.there.all()
    assert [mask["presence"] for mask in result.as_dict()["masks"]] == [None, None]


def test_the_threshold_is_that_of_the_bundle_else_of_the_checkpoint(with_presence, tmp_path):
    from digseg_engine.model.config import DigsegConfig

    threshold = Engine.load(with_presence.bundle, "onnxruntime").gate.threshold
    source = open_source(with_presence.checkpoint)
    assert (
        source.presence_threshold == pytest.approx(threshold) and source.cell == open_source(with_presence.bundle).cell
    )
    other = replace(DigsegConfig.load(with_presence.checkpoint), presence_threshold=None)
    trained = shutil.copytree(with_presence.checkpoint, tmp_path / "trained")
    other.save(trained)
    assert open_source(trained).presence_threshold is None
    assert open_source(with_presence.bundle, trained).presence_threshold == threshold


class Counted:
    """A backend of one-number encodings for which a new number of prompts is costly."""

    name, detail, new_shapes_cost = "counted", "counted", True

    def __init__(self):
        self.asked = []

    def presence(self, encoding, keys, values, mask):
        return np.where(keys[:, 0][None] < encoding, 1.0, -1.0).astype(np.float32)

    def decode(self, encoding, keys, values, mask):
        self.asked.append(len(keys))
        return np.broadcast_to(keys[None, :, :1, None], (len(encoding), len(keys), 2, 2)).astype(np.float32)


@pytest.mark.parametrize(("active", "asked"), [(1, 1), (2, 2), (3, 4), (5, 8), (9, 11), (10, 11)])
def test_where_new_shapes_cost_the_prompts_come_in_few_numbers(active, asked):
    backend = Counted()
    keys = np.arange(11, dtype=np.float32)[:, None]
    about = Stretch(np.full((1, 1), active, np.float32), 0, 1, (4, 4))
    found, _ = ask(ChunkedRunner(backend), about, (keys, keys, np.ones((11, 8), bool)), Gate(0.0, 2))
    assert backend.asked == [asked]
    assert found.logits[0, :, 0, 0].tolist() == [*range(active), *[ABSENT] * (11 - active)]


class Unsure(OrtBackend):
    """Presence is a little off."""

    def presence(self, *given):
        return super().presence(*given) + 0.1


class Silent(OrtBackend):
    def presence(self, *given):
        return None


@pytest.mark.parametrize(("backend", "words"), [(Unsure, "wrong: error"), (Silent, "its logits or presence")])
def test_a_backend_whose_presence_is_wrong_is_refused(with_presence, backend, words):
    source = open_source(with_presence.bundle)
    assert check_golden(OrtBackend(source), source.golden)[0] < 1e-3
    kind = BackendKind("odd", lambda: Usable("odd", True, ""), lambda source: backend(source))
    with pytest.raises(BackendError, match=words):
        named(kind, source)
