"""Scenes: deterministic, labelled as promised, with unseen pairs kept out of training."""

import numpy as np
import pytest

from digseg_engine.errors import UsageError
from digseg_engine.worlds.domains import COLOURS, NAMELESS_COLOUR, NAMELESS_SHAPE, _cut
from digseg_engine.worlds.nameless import CLEARANCE, NAMELESS_SHAPES, nameless_colour
from digseg_engine.worlds.painting import SHAPES, local
from digseg_engine.worlds.scenes import (
    CLASSES,
    DOMAINS,
    SEEN_PAIRS,
    UNSEEN_PAIRS,
    phrase,
    scene,
)


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("size", [64, 97, 256])
def test_same_seed_same_pixels_at_any_size(domain, size):
    a, b, other = scene(7, domain, size), scene(7, domain, size), scene(8, domain, size)
    assert a.image.shape == (size, size, 3) and a.image.dtype == np.uint8
    assert np.array_equal(a.image, b.image) and np.array_equal(a.ids, b.ids) and a.regions == b.regions
    assert not np.array_equal(a.image, other.image)
    assert a.ids.max() <= len(a.regions) and set(a.names()) <= set(CLASSES[domain])


def test_a_scene_is_the_same_in_another_process():
    import subprocess
    import sys
    import zlib

    code = "from digseg_engine.worlds.scenes import *; import zlib; print([zlib.crc32(scene(3, d, 64).image) for d in DOMAINS])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([zlib.crc32(scene(3, d, 64).image) for d in DOMAINS])


def test_training_never_draws_an_unseen_pair_and_testing_does():
    drawn = {names[0] for seed in range(400) for names in scene(seed, "objects", 32).regions}
    assert not drawn & set(UNSEEN_PAIRS) and len(drawn & set(SEEN_PAIRS)) == len(SEEN_PAIRS) == 42
    tested = {names[0] for seed in range(200) for names in scene(seed, "objects", 32, "test").regions}
    assert set(UNSEEN_PAIRS) <= tested


def test_training_shows_shapes_and_colours_that_have_no_name_and_testing_does_not():
    kinds = {"train": [0, 0, 0], "test": [0, 0, 0]}
    for split, counts in kinds.items():
        for seed in range(150):
            for names in scene(seed, "objects", 32, split).regions:
                counts[0 if len(names) == 3 else 1 if names[0] in COLOURS else 2] += 1
    shares = np.array(kinds["train"]) / sum(kinds["train"])
    np.testing.assert_allclose(shares[1:], (NAMELESS_SHAPE, NAMELESS_COLOUR), atol=0.04)
    assert kinds["test"][1:] == [0, 0]


def test_a_nameless_colour_is_far_from_every_named_one():
    rng, named = np.random.default_rng(0), np.array(list(COLOURS.values()), np.float32)
    found = np.array([nameless_colour(rng, named, np.full(3, 0.5, np.float32)) for _ in range(100)])
    assert np.linalg.norm(found[:, None] - named, axis=2).min() > CLEARANCE
    assert np.linalg.norm(found - 0.5, axis=1).min() > CLEARANCE


def test_nameless_shapes_are_none_of_the_named_ones():
    def drawn(outline):  # as large as it comes, in eight positions
        turns = [local(65, (32.5, 32.5), k * np.pi / 4) for k in range(8)]
        return np.stack([outline(u, v, 20.0) < 0 for u, v in turns])

    named = [drawn(outline)[0] for outline in SHAPES.values()]
    for outline in NAMELESS_SHAPES:
        for turned in drawn(outline):
            assert turned.sum() > 150
            assert all((turned & one).sum() / (turned | one).sum() < 0.85 for one in named), outline.__name__


def test_masks_follow_colour_and_shape():
    one = scene(3, "objects", 128, "test")
    pair = one.names()[0]
    colour, shape = pair.split()
    assert one.mask(pair).any()
    assert (one.mask(colour) | one.mask(pair)).sum() == one.mask(colour).sum()
    assert (one.mask(shape) & one.mask(pair)).sum() == one.mask(pair).sum()
    assert not one.mask("grass").any()


def test_painted_colour_is_the_named_colour():
    for seed in range(20):
        one = scene(seed, "objects", 96)
        for name in one.names():
            if name in COLOURS and one.mask(name).sum() > 100:
                mean = one.image[one.mask(name)].mean(0) / 255
                nearest = min(COLOURS, key=lambda c: np.abs(mean - COLOURS[c]).sum())
                assert nearest == name


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_closed_and_about_as_large_as_their_radius(name):
    u, v = local(128, (64, 64), 0.3)
    inside = SHAPES[name](u, v, 30) < 0
    assert 0.3 * np.pi * 30**2 < inside.sum() < 1.3 * np.pi * 30**2
    rows = np.flatnonzero(inside.any(1))
    assert rows[0] >= 64 - 38 and rows[-1] <= 64 + 38


def test_photographs_are_cut_from_disjoint_halves(monkeypatch):
    from digseg_engine.worlds import domains

    columns = np.broadcast_to(np.arange(512, dtype=np.float32)[None], (512, 512))
    monkeypatch.setattr(domains, "_photograph", lambda name: columns)
    rng = np.random.default_rng(0)
    train = max(_cut(rng, "grass", 32, "train").max() for _ in range(200))
    test = min(_cut(rng, "grass", 32, "test").min() for _ in range(200))
    assert train < test


def test_every_domain_shows_every_class_and_sometimes_lacks_one():
    for domain in DOMAINS[1:]:
        shown = [set(scene(seed, domain, 64).names()) for seed in range(40)]
        assert set().union(*shown) == set(CLASSES[domain])
        assert any(names != set(CLASSES[domain]) for names in shown)


def test_phrases_mean_their_name_and_hold_back_one_wording():
    rng = np.random.default_rng(0)
    texts = {phrase(rng, "red ring").text for _ in range(300)}
    assert {"red ring", "a red ring", "ring in red"} <= texts and "the ring that is red" not in texts
    assert all("red" in text and "ring" in text for text in texts)
    assert phrase(rng, "weed").name == "weed"


@pytest.mark.parametrize(
    ("arguments", "word"), [((0, "cats"), "cats"), ((0, "objects", 16), "16"), ((0, "objects", 64, "dev"), "dev")]
)
def test_impossible_scenes_are_refused(arguments, word):
    with pytest.raises(UsageError, match=word):
        scene(*arguments)
