"""A bundle exported for shapes answers every request that can be padded, split or resized into them, and the same."""

import numpy as np
import pytest
from nano_models import AsItIs, with_profile

from digseg_engine import Engine
from digseg_engine.contract import ABSENT
from digseg_engine.errors import BundleError, InputError, UsageError
from digseg_engine.runtime.chunks import ChunkedRunner, Stretch, joined
from digseg_engine.runtime.presence import Asker, Gate
from digseg_engine.runtime.profile import Profile, Range

RNG = np.random.default_rng(5)
MANY = [f"thing {i}" for i in range(12)]
FIXED = {"B": (1, 1, 1), "K": (5, 5, 5), "L": (16, 16, 32), "H": (64, 64, 64), "W": (64, 64, 64)}
WIDE = {"B": (2, 2, 3), "K": (2, 3, 4), "L": (8, 8, 16), "H": (32, 64, 64), "W": (96, 128, 128)}


def picture(height, width):
    return RNG.integers(0, 255, (height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def free(nano_models):
    return Engine.load(nano_models.fp32, "onnxruntime")


@pytest.fixture(scope="module")
def fixed(nano_models, tmp_path_factory):
    return Engine.load(
        with_profile(nano_models.fp32, tmp_path_factory.mktemp("fixed") / "bundle", **FIXED), "onnxruntime"
    )


@pytest.fixture(scope="module")
def wide(nano_models, tmp_path_factory):
    return Engine.load(
        with_profile(nano_models.fp32, tmp_path_factory.mktemp("wide") / "bundle", **WIDE), "onnxruntime"
    )


def test_the_backend_itself_refuses_other_shapes(fixed):
    keys, values, mask = fixed.prompts.fold(MANY[:1])
    with pytest.raises(InputError, match="outside the profile"):
        fixed.backend.decode(fixed.backend.encode_image(np.zeros((1, 3, 64, 64), np.float32)), keys, values, mask)
    with pytest.raises(InputError, match="outside the profile"):
        fixed.backend.encode_image(np.zeros((1, 3, 64, 32), np.float32))


@pytest.mark.parametrize("shape", [(64, 64), (90, 120), (120, 90), (30, 200), (8, 8), (400, 61)])
@pytest.mark.parametrize("count", [1, 4, 5, 6, 12])
def test_any_prompts_about_any_proportions(fixed, shape, count):
    result = fixed.segment(picture(*shape), MANY[:count])
    assert result.masks.shape == (count, *shape) and len(result.scores) == count
    assert result.logits.shape == (count, 32, 32)  # of 64 x 64, padding included


@pytest.mark.parametrize("count", [1, 2, 5, 7, 12])
def test_padding_and_company_change_no_bit(fixed, count):
    given = picture(60, 80)
    alone = [fixed.segment(given, [prompt]) for prompt in MANY[:count]]
    together = fixed.segment(given, MANY[:count])
    for k, one in enumerate(alone):
        assert np.array_equal(together.masks[k], one.masks[0])
        assert np.array_equal(together.logits[k], one.logits[0])


def test_the_answers_are_those_of_the_free_bundle(fixed, free):
    given = picture(64, 64)
    got, want = (engine.segment(given, [*MANY, "a"]).logits for engine in (fixed, free))
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()


def test_pictures_are_padded_and_split_too(wide, free):
    pictures = [picture(60, 120) for _ in range(7)]
    found = wide.segment_batch(pictures, MANY[:9])
    for given, result in zip(pictures, found):
        want = free.segment(given, MANY[:9], size=128).logits
        assert np.abs(result.logits - want).max() <= 1e-4 * np.abs(want).max()
        assert np.array_equal(wide.segment(given, MANY[:9]).masks, result.masks)


def test_the_profiles_own_size_is_the_default(wide, fixed):
    assert wide.segment(picture(60, 120), ["a"]).logits.shape == (1, 32, 64)  # of 64 x 128 pixels
    assert wide.segment(picture(120, 60), ["a"]).logits.shape == (
        1,
        32,
        48,
    )  # as large as its rows allow, 96 columns at least
    assert fixed.segment(picture(120, 60), ["a"]).frame.content == (64, 32)
    assert wide.segment(picture(60, 120), ["a"], size=64).frame.content == (32, 64)


def test_a_size_that_cannot_be_had_is_refused(fixed, wide):
    with pytest.raises(InputError, match=r"at most 64 fits its proportions"):
        fixed.segment(picture(64, 64), ["a"], size=128)
    with pytest.raises(InputError, match=r"at most 64 fits"):
        wide.segment(picture(90, 60), ["a"], size=96)
    with pytest.raises(UsageError, match="working size must be"):
        fixed.segment(picture(64, 64), ["a"], size=8)


def test_a_prompt_longer_than_the_profile_is_refused(wide):
    with pytest.raises(InputError, match=r"tokens, this model was exported for at most 16"):
        wide.segment(picture(64, 64), ["red " * 30])
    assert wide.segment(picture(64, 64), ["red " * 30, "a"][1:]).masks.shape[0] == 1


def test_pixels_of_the_models_own(fixed, free):
    pixels = RNG.uniform(-1, 1, (2, 3, 64, 64)).astype(np.float32)
    got, want = (engine.logits(pixels, MANY[:7]) for engine in (fixed, free))
    assert got.shape == want.shape and np.abs(got - want).max() <= 1e-4 * np.abs(want).max()
    with pytest.raises(InputError, match="outside the profile"):
        fixed.logits(np.zeros((1, 3, 96, 96), np.float32), ["a"])


def test_auto_times_at_a_shape_it_can_run(fixed):
    engine = Engine.load(fixed.bundle.folder, size=512, prompts=20, batch=4)
    assert engine.segment(picture(50, 70), MANY).masks.shape == (12, 50, 70)


def test_tiles_are_worked_at_a_square_of_the_profile(fixed, wide, tmp_path):
    tiled = fixed.segment_tiles(picture(200, 150), MANY[:6], tmp_path, tile=128)
    assert tiled.shape == (200, 150) and len(tiled.areas) == 6
    with pytest.raises(UsageError, match="no square"):
        wide.segment_tiles(picture(200, 150), ["a"], tmp_path)


def test_shapes_that_cannot_be_read_are_the_bundles_fault(fixed, tmp_path):
    import json
    import shutil

    folder = shutil.copytree(fixed.bundle.folder, tmp_path / "odd")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shapes"]["K"] = {"min": 1}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError):
        Engine.load(folder, "onnxruntime")


class Strict(AsItIs):
    """An engine built for shapes: a profile of its own, also for its text encoder."""

    name, detail = "strict", "strict"
    profile = Profile({axis: Range(*ends) for axis, ends in {**FIXED, "K": (3, 4, 5), "B": (1, 1, 2)}.items()})

    def __init__(self):
        self.seen, self.decoded = [], []

    def encode_text(self, ids, mask):
        self.profile.check({"K": ids.shape[0], "L": ids.shape[1]})
        self.seen.append(ids.copy())
        return ids[:, None, None, None, :].astype(np.float32), ids[:, None, None, :, None].astype(np.float32)

    def encode_image(self, image):
        self.profile.check({"B": len(image), "H": image.shape[2], "W": image.shape[3]})
        return image

    def presence(self, encoding, keys, values, mask):
        """A prompt's own number: the more, the surer."""
        self.profile.check({"B": len(encoding), "K": len(keys), "L": mask.shape[1]})
        return np.repeat(keys[None, :, 0, 0, 0, 0], len(encoding), 0) - encoding.mean((1, 2, 3))[:, None]

    def decode(self, encoding, keys, values, mask):
        self.profile.check({"B": len(encoding), "K": len(keys), "L": mask.shape[1]})
        self.decoded.append((len(encoding), keys[:, 0, 0, 0, 0].tolist()))
        return keys[None, :, 0, 0, 0, :1, None] + encoding.mean((1, 2, 3))[:, None, None, None]


def test_only_neighbours_that_were_encoded_together_are_asked_together():
    one, other = np.zeros((3, 1)), np.zeros((3, 1))
    places = [Stretch(kept, i, i + 1, (64, 64)) for kept, i in ((one, 0), (one, 1), (other, 2), (one, 2), (one, 2))]
    assert [(each.kept is one, each.first, each.last) for each in joined(places)] == [(True, 0, 2), (False, 2, 3), (True, 2, 3),
                                                                                    (True, 2, 3)]  # fmt: skip


def test_an_engine_built_for_shapes_encodes_within_them_too():
    backend = Strict()
    runner = ChunkedRunner(backend)
    keys, values = runner.encode_text(np.array([[7, 1, 1]]), np.array([[True, True, False]]))
    assert keys.shape == (1, 1, 1, 1, 16) and values.shape == (1, 1, 1, 16, 1)
    assert backend.seen[0].shape == (3, 16) and (backend.seen[0][:, 1:] == 1).all()
    image = np.arange(5, dtype=np.float32)[:, None, None, None] * np.ones((1, 3, 64, 64), np.float32)
    many = np.repeat(np.arange(9, dtype=np.float32), 16).reshape(9, 1, 1, 1, 16)
    text = many, many.transpose(0, 1, 2, 4, 3), np.ones((9, 16), np.bool_)
    found, _ = Asker(runner, text, Gate(None, 64), 64).about_pixels(image)
    want = np.arange(5)[:, None] + np.arange(9)[None, :]
    assert np.array_equal(found.logits[..., 0, 0], want)
    for pictures in ((1, 1, 2), (2, 2, 4), (3, 3, 3)):  # each picture's own prompts, whatever must stand beside it
        backend.profile = Profile({**Strict.profile.ranges, "B": Range(*pictures)})
        backend.decoded.clear()
        found, _ = Asker(ChunkedRunner(backend), text, Gate(3.5, 64), 64).about_pixels(image)
        assert np.array_equal(found.there, np.arange(9)[None] - np.arange(5)[:, None] >= 3.5)
        assert np.array_equal(found.logits[..., 0, 0], np.where(found.there, want, ABSENT))
        assert all(min(prompts) >= 4 for _, prompts in backend.decoded)  # what is not there is never decoded
