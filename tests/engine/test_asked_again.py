"""A picture encoded once: asked as often as wanted, from any thread, with the answers of a picture asked in one step."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from digseg_engine import Engine
from digseg_engine.errors import InputError, UsageError
from digseg_engine.images import Picture

PROMPTS, AGAINST = ["red circle", "water", "a tree"], ["soil", "water"]
PICTURE = np.random.default_rng(0).integers(0, 255, (70, 90, 3), np.uint8)
OTHERS = [np.random.default_rng(i).integers(0, 255, (64, 48 + 16 * (i % 2), 3), np.uint8) for i in range(1, 5)]


@pytest.fixture(scope="module", params=["onnxruntime", "onnxruntime fp16", "torch"])
def engine(request, nano_models):
    name = request.param.split()[0]
    model = (
        nano_models.checkpoint if name == "torch" else nano_models.fp16 if "fp16" in request.param else nano_models.fp32
    )
    return Engine.load(model, name)


@pytest.fixture(scope="module")
def usual(nano_models):
    return Engine.load(nano_models.fp32, "onnxruntime")


def same(one, other):
    """Whether two results say the same, bit for bit."""
    assert np.array_equal(one.logits, other.logits) and np.array_equal(one.scores, other.scores)
    assert np.array_equal(one.masks, other.masks) and np.array_equal(one.label_map, other.label_map)
    assert one.frame == other.frame and one.answers == other.answers and one.about == other.about
    assert one.picture.path == other.picture.path and np.array_equal(one.image, other.image)
    return True


@pytest.mark.parametrize("size", [None, 96])
def test_two_steps_answer_as_one(engine, size):
    encoding = engine.encode(PICTURE, size)
    for prompts in (PROMPTS, PROMPTS[1:2], [*PROMPTS, *map(str, range(9))]):
        for options in ({}, {"threshold": 0.3, "labels": "strongest"}, {"against": AGAINST, "keep_masks": False}):
            assert same(engine.segment(encoding, prompts, **options), engine.segment(PICTURE, prompts, size, **options))
    prepared = engine.prepare(PROMPTS)
    assert same(engine.segment(encoding, prepared), engine.segment(PICTURE, PROMPTS, size))


def test_every_kind_of_picture_is_encoded(usual, tmp_path):
    from PIL import Image

    Image.fromarray(PICTURE).save(tmp_path / "p.png")
    for given in (tmp_path / "p.png", Image.fromarray(PICTURE), Picture(PICTURE, ("a remark",))):
        assert same(usual.segment(usual.encode(given), PROMPTS), usual.segment(given, PROMPTS))
    assert usual.segment(usual.encode(Picture(PICTURE, ("a remark",))), PROMPTS).fallbacks == ("a remark",)
    refilled = PICTURE.copy()
    encoding = usual.encode(refilled)
    refilled[:] = 0
    assert same(usual.segment(encoding, PROMPTS), usual.segment(PICTURE, PROMPTS))
    with pytest.raises(InputError, match=r"nowhere\.png"):
        usual.encode("nowhere.png")


def test_refined_masks_are_those_of_one_step(nano_models):
    engine = Engine.load(nano_models.checkpoint, "torch")
    one, two = (
        engine.segment(given, PROMPTS, refine=2, steps=2, seed=3) for given in (PICTURE, engine.encode(PICTURE))
    )
    assert one.refined == two.refined and len(one.refined) == 2 and same(one, two)


def test_a_picture_is_encoded_once_and_each_prompt_once(usual, monkeypatch):
    calls, plain = [], usual.backend.encode_image
    monkeypatch.setattr(usual.backend, "encode_image", lambda image: calls.append(len(image)) or plain(image))
    encoding = usual.encode(PICTURE)
    assert set(encoding.seconds) == {"decode", "fit", "encode"}
    for k in range(5):
        result = usual.segment(encoding, [f"thing {k}"])
        assert set(result.timings) == {"decode", "text", "masks", "label"}
    assert calls == [1]
    usual.segment_batch([*OTHERS, encoding], PROMPTS)
    assert calls == [1, 2, 2]  # of each shape together, and what is encoded not again


def test_batches_and_streams_take_both(engine):
    encoded = [engine.encode(picture) for picture in OTHERS]
    mixed = [encoded[0], OTHERS[1], encoded[2], encoded[0], OTHERS[3]]
    wanted = [engine.segment(encoded[i], PROMPTS) for i in (0, 1, 2, 0, 3)]
    for found in (engine.segment_batch(mixed, PROMPTS), list(engine.stream(mixed, PROMPTS, batch=3))):
        for i, (one, other) in enumerate(zip(found, wanted)):
            if i in (0, 2, 3):
                assert same(one, other)
            assert np.abs(one.logits - other.logits).max() <= 1e-4 * np.abs(other.logits).max()
    first, broken, last = engine.segment_batch([encoded[0], "nowhere.png", encoded[1]], PROMPTS, on_error="return")
    assert isinstance(broken, InputError) and same(first, wanted[0]) and same(last, wanted[1])


def test_threads_ask_about_one_encoding(engine):
    encoding = engine.encode(PICTURE)
    jobs = [[PROMPTS[i % 3], f"thing {i % 7}"] for i in range(40)]
    serial = [engine.segment(encoding, job).logits for job in jobs]
    with ThreadPoolExecutor(8) as pool:
        parallel = list(pool.map(lambda job: engine.segment(encoding, job).logits, jobs))
    assert all(np.array_equal(a, b) for a, b in zip(serial, parallel))


def test_what_it_says_of_itself(usual, nano_models):
    encoding = usual.encode(PICTURE, 96)
    channels = usual.bundle.manifest["model"]["encoding"]
    rows, columns = (side // usual.stride for side in encoding.frame.working)
    assert encoding.size == 96 and encoding.nbytes == 4 * channels * rows * columns == encoding.place.kept.nbytes
    assert repr(encoding) == f"Encoding(90x70 worked at 96, {encoding.nbytes / 2**20:.2f} MiB)"
    assert np.array_equal(encoding.picture.pixels, PICTURE)
    half = Engine.load(nano_models.checkpoint, "torch").encode(PICTURE, 96)
    assert half.nbytes == encoding.nbytes


def test_it_belongs_to_its_engine(usual, nano_models):
    encoding = usual.encode(PICTURE)
    other = Engine(usual.source, usual.backend)
    for ask in (other.segment, lambda e, p: other.segment_batch([e], p), lambda e, p: list(other.stream([e], p))):
        with pytest.raises(UsageError, match=r"encoded by another engine.*engine\.encode\(picture\)"):
            ask(encoding, PROMPTS)
    with pytest.raises(UsageError, match=r"at a working size of 64 pixels, and 96 was asked for.*size=96"):
        usual.segment(encoding, PROMPTS, size=96)
    assert usual.segment(encoding, PROMPTS, size=64).frame == encoding.frame
    with pytest.raises(UsageError, match="encoded already"):
        usual.encode(encoding)
    with pytest.raises(InputError):
        usual.segment_tiles(encoding, PROMPTS, "nowhere")
    other.close()
    with pytest.raises(UsageError, match="closed"):
        other.segment(encoding, PROMPTS)
    with pytest.raises(UsageError, match="working size must be"):
        usual.encode(PICTURE, 8)


def test_it_is_neither_pickled_nor_copied(usual):
    encoding = usual.encode(PICTURE)
    for keep in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(UsageError, match="cannot be pickled or copied"):
            keep(encoding)
    assert replace(encoding, notes=("x",)).place is encoding.place


def test_an_encoding_outlives_what_was_asked_before(engine):
    """Neither the next picture nor other sizes touch what an earlier encoding holds."""
    encoding = engine.encode(PICTURE)
    want = engine.segment(encoding, PROMPTS).logits
    for picture in OTHERS:
        engine.segment(picture, PROMPTS)
        engine.segment(picture, [*PROMPTS, "more"], size=96)
    assert np.array_equal(engine.segment(encoding, PROMPTS).logits, want)
